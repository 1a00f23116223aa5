"""Features of a model that an architecture of llama.cpp must support; unsupported ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from darwinlm.errors import ExportError
from darwinlm.export.gguf.rope import Rope, UnknownRopeError, read_rope

TANH_GELU = ("gelu_pytorch_tanh",)
ACTIVATIONS = {"gemma": ("gelu", *TANH_GELU), "gemma2": TANH_GELU, "gemma3_text": TANH_GELU, "arcee": ("relu2",)}
ACTIVATIONS |= {"gemma4_text": TANH_GELU, "nemotron": ("relu2",), "apertus": ("xielu",)}
SILU = ("silu", "swish")
NO_ROPE_STEP = 4  # of smollm3 in llama.cpp: every fourth layer has no rotary embedding
PERIODS = {"gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "olmo3": 4}
"""Families whose architecture has sliding windows, with the period of the layers without one."""
FIXED_PERIODS = ("gemma3_text", "olmo3")
"""Those whose sliding layers have another rotary embedding, so that this period is required without a window too."""
DELTA = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
PARTIAL = ("phi3", "glm", "glm4", "glm4_moe", "nemotron", "minimax_m2", *DELTA)
"""Families whose architecture rotates only a part of each head."""
LITE = 26, 27
SWIGLU = 1.702, 7.0
"""Slope and limit of gpt-oss' activation in llama.cpp."""
SLIDING_EXAONE = 64
"""Number of blocks by which llama.cpp recognises EXAONE 4 with sliding-window layers."""


@dataclass(frozen=True)
class Features:
    """Features for the keys of a file.

    Attributes:
        rope: Rotary embedding.
        context: Maximum context in which the file and the model give the same results.
        window: Window of sliding layers, if the architecture has such layers.
        notes: Remarks for the user.
    """

    rope: Rope
    context: int
    window: int | None = None
    notes: tuple[str, ...] = ()


def read_features(model_type: str, config: Any, columns: int) -> Features:
    """Read the features from the configuration.

    Args:
        model_type: Model type of the family.
        config: Configuration of the model.
        columns: Columns of a head.

    Raises:
        ExportError: No architecture of stock llama.cpp supports this; the message gives the reason.
    """
    if (reason := _reason(model_type, config)) is not None:
        raise refused(model_type, reason)
    try:
        rope = read_rope(config, columns, one_base=model_type == "olmo3")
    except UnknownRopeError as error:
        raise refused(model_type, str(error)) from error
    if rope.turned < columns and model_type not in PARTIAL:
        raise refused(model_type, "only a part of each head is rotated")
    notes = []
    context, window = int(config.max_position_embeddings), None
    if model_type == "gemma4_text":
        window = int(config.sliding_window)
    elif model_type in PERIODS:
        window = _window_of_some(model_type, config)
    elif (seen := _window_of_all(config)) is not None:
        notes.append(
            f"its attention slides over a window of {seen} tokens, which llama.cpp doesn't support in all layers: up "
            f"to this length results are the same, so the file's context is {seen} instead of {context}"
        )
        context = seen
    if model_type == "ministral3" and rope.values.get("llama_4_scaling_beta") and context > rope.original:
        notes.append(
            f"its queries are scaled with their position from {rope.original} tokens on, which llama.cpp doesn't "
            f"support in a Llama: the file's context is {rope.original} instead of {context}"
        )
        context = rope.original
    if rope.kind == "dynamic":
        notes.append(f"its rope scaling of the type dynamic starts after the file's context of {context} tokens")
    if rope.kind == "longrope" and context > rope.original:
        notes.append(
            f"rope factors for long texts: llama.cpp uses them if its context is larger than {rope.original} "
            "tokens, transformers if the text is longer"
        )
    return Features(rope, context, window, tuple(notes))


def _window_of_all(config: Any) -> int | None:
    """Window of sliding layers; None if there are none."""
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    slides = 0 < window < config.max_position_embeddings and (not kinds or "sliding_attention" in kinds)
    return window if slides else None


def _window_of_some(model_type: str, config: Any) -> int:
    """The same for an architecture with a fixed order of sliding layers."""
    period = PERIODS[model_type]
    slide = [kind == "sliding_attention" for kind in config.layer_types]
    as_known = slide == [bool((i + 1) % period) for i in range(len(slide))]
    if not as_known and (model_type in FIXED_PERIODS or _window_of_all(config) is not None):
        raise refused(model_type, f"in llama.cpp every {period}. layer has no window, this model has another order")
    return int(config.sliding_window) if as_known else int(config.max_position_embeddings)


def _reason(model_type: str, config: Any) -> str | None:
    """What its architecture can't do: the activation of MLPs, or the first of `LIMITS` that the model exceeds."""
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", SILU[0])
    if activation not in ACTIVATIONS.get(model_type, SILU):
        return f"its MLPs use {activation}"
    return next((reason for types, exceeds, reason in LIMITS if model_type in types and exceeds(config)), None)


def _odd_distances(config: Any) -> bool:
    """Whether attentions don't come at equal distances, the last block included."""
    whole = [kind == "full_attention" for kind in config.layer_types]
    step = whole.index(True) + 1 if any(whole) else 0
    return not step or whole != [(i + 1) % step == 0 for i in range(len(whole))]


LIMITS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("smollm3",),
        lambda c: list(c.no_rope_layers) != [int((i + 1) % NO_ROPE_STEP != 0) for i in range(c.num_hidden_layers)],
        "llama.cpp omits the rotary embedding in every fourth layer, this model in others",
    ),
    (
        ("exaone4",),
        lambda c: c.num_hidden_layers == SLIDING_EXAONE or c.sliding_window is not None,
        "some of its layers have a sliding window, which the export doesn't support yet",
    ),
    (
        ("gemma3_text",),
        lambda c: bool(c.final_logit_softcapping or c.attn_logit_softcapping),
        "it caps scores or logits, which llama.cpp only supports for Gemma 2",
    ),
    (
        ("gemma3_text",),
        lambda c: bool(getattr(c, "use_bidirectional_attention", False)),
        "its attention is bidirectional",
    ),
    (DELTA, _odd_distances, "its attentions don't come at equal distances"),
    (
        DELTA,
        lambda c: bool(c.linear_key_head_dim != c.linear_value_head_dim),
        "keys and values of its linear attention differ in size",
    ),
    (
        ("gpt_oss",),
        lambda c: (c.swiglu_alpha, c.swiglu_limit) != SWIGLU,
        f"in llama.cpp the constants of its activation are {SWIGLU[0]} and {SWIGLU[1]}",
    ),
    (
        ("deepseek_v2",),
        lambda c: bool(c.topk_method != "greedy"),
        "its router rates groups of experts by the best one, llama.cpp by the best two",
    ),
    (
        ("deepseek_v3", "glm4_moe_lite"),
        lambda c: not c.rope_interleave,
        "its rotary embedding pairs halves of a head, in llama.cpp neighbouring columns",
    ),
    (
        ("deepseek_v2", "deepseek_v3", "glm4_moe_lite"),
        lambda c: c.num_hidden_layers in LITE and bool(c.q_lora_rank),
        f"llama.cpp takes a model of {LITE[0]} or {LITE[1]} blocks for a Lite one, without compressed queries",
    ),
    (
        ("olmoe",),
        lambda c: bool(c.norm_topk_prob),
        "the weights of the chosen experts sum to one, but in llama.cpp they don't",
    ),
    (
        ("olmoe",),
        lambda c: bool(c.num_key_value_heads != c.num_attention_heads),
        "it has fewer KV heads than query heads, but in llama.cpp as many",
    ),
    (
        ("olmoe",),
        lambda c: c.clip_qkv is not None,
        "it clips queries, keys and values, which the export doesn't support",
    ),
    (
        ("ernie4_5_moe",),
        lambda c: (c.moe_layer_interval, c.moe_layer_end_index) != (1, c.num_hidden_layers - 1),
        "some of its later MLPs aren't mixtures of experts, which the export doesn't support",
    ),
    (
        ("qwen2_moe",),
        lambda c: bool(c.norm_topk_prob),
        "the weights of the chosen experts sum to one, but in llama.cpp they don't",
    ),
    (
        ("qwen2_moe", "qwen3_moe", "qwen3_next"),
        lambda c: bool(c.mlp_only_layers or c.decoder_sparse_step != 1),
        "some of its MLPs aren't mixtures of experts, but in llama.cpp all of them are",
    ),
    (
        ("qwen3_moe", "qwen3_next"),
        lambda c: not c.norm_topk_prob,
        "the weights of the chosen experts don't sum to one, but in llama.cpp they do",
    ),
)
"""What architectures can't do: families, a test of the configuration, and the reason as a clause."""


OTHERWISE = "Use --to vllm or --to hf, or --to dense for a model of stock shapes, which any converter accepts"


def refused(model_type: str, reason: str, remedy: str = OTHERWISE) -> ExportError:
    """The error for a model that GGUF can't represent."""
    return ExportError(f"no architecture of stock llama.cpp supports this {model_type} model: {reason}. {remedy}")
