"""Features of a model that an architecture of llama.cpp must support; unsupported ones are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darwinlm.errors import ExportError
from darwinlm.export.gguf.rope import Rope, UnknownRopeError, read_rope

TANH_GELU = ("gelu_pytorch_tanh",)
ACTIVATIONS = {"gemma": ("gelu", *TANH_GELU), "gemma2": TANH_GELU, "gemma3_text": TANH_GELU, "arcee": ("relu2",)}
ACTIVATIONS["gemma4_text"] = TANH_GELU
SILU = ("silu", "swish")
NO_ROPE_STEP = 4  # of smollm3 in llama.cpp: every fourth layer has no rotary embedding
PERIODS = {"gemma2": 2, "gemma3_text": 6}
"""Families whose architecture has sliding windows, with the period of the layers without one."""
EXPERTS = (
    *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_5_moe_text", "qwen3_next", "glm4_moe", "glm4_moe_lite"),
    *("ernie4_5_moe", "minimax_m2", "gemma4_text_experts", "granitemoehybrid_experts"),
)
HYBRIDS = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "lfm2", "granitemoehybrid")
"""Families with other token mixers."""
PARTIAL = ("phi3", "glm4", "glm4_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "minimax_m2")
"""Families whose architecture rotates only a part of each head."""
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
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", SILU[0])
    if activation not in ACTIVATIONS.get(model_type, SILU):
        raise refused(model_type, f"its MLPs use {activation}")
    try:
        rope = read_rope(config, columns)
    except UnknownRopeError as error:
        raise refused(model_type, str(error)) from error
    if rope.turned < columns and model_type not in PARTIAL:
        raise refused(model_type, "only a part of each head is rotated")
    _check_family(model_type, config)
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
    if not as_known and (model_type == "gemma3_text" or _window_of_all(config) is not None):
        raise refused(model_type, f"in llama.cpp every {period}. layer has no window, this model has another order")
    return int(config.sliding_window) if as_known else int(config.max_position_embeddings)


def _check_family(model_type: str, config: Any) -> None:
    if model_type == "smollm3":
        step = [int((i + 1) % NO_ROPE_STEP != 0) for i in range(config.num_hidden_layers)]
        if list(config.no_rope_layers) != step:
            raise refused(
                model_type, "llama.cpp omits the rotary embedding in every fourth layer, this model in others"
            )
    if model_type == "exaone4" and (config.num_hidden_layers == SLIDING_EXAONE or config.sliding_window is not None):
        raise refused(model_type, "some of its layers have a sliding window, which the export doesn't support yet")
    if model_type == "gemma3_text":
        if config.final_logit_softcapping or config.attn_logit_softcapping:
            raise refused(model_type, "it caps scores or logits, which llama.cpp only supports for Gemma 2")
        if getattr(config, "use_bidirectional_attention", False):
            raise refused(model_type, "its attention is bidirectional")
    _check_mixers(model_type, config)
    _check_experts(model_type, config)


def _check_mixers(model_type: str, config: Any) -> None:
    if model_type in ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"):
        step = config.layer_types.index("full_attention") + 1 if "full_attention" in config.layer_types else 0
        whole = [kind == "full_attention" for kind in config.layer_types]
        if not step or whole != [(i + 1) % step == 0 for i in range(len(whole))]:
            raise refused(model_type, "its attentions don't come at equal distances")
        if config.linear_key_head_dim != config.linear_value_head_dim:
            raise refused(model_type, "keys and values of its linear attention differ in size")


def _check_experts(model_type: str, config: Any) -> None:
    if model_type in ("glm4_moe", "glm4_moe_lite") and config.n_group != 1:
        raise refused(model_type, "its router chooses among groups of experts, which the export doesn't support")
    if model_type == "olmoe":
        if config.norm_topk_prob:
            raise refused(model_type, "the weights of the chosen experts sum to one, but in llama.cpp they don't")
        if config.num_key_value_heads != config.num_attention_heads:
            raise refused(model_type, "it has fewer KV heads than query heads, but in llama.cpp as many")
        if config.clip_qkv is not None:
            raise refused(model_type, "it clips queries, keys and values, which the export doesn't support")
    if model_type in ("qwen2_moe", "ernie4_5_moe"):
        _check_places(model_type, config)
    if model_type in ("qwen3_moe", "qwen3_next"):
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            raise refused(model_type, "some of its MLPs aren't mixtures of experts, but in llama.cpp all of them are")
        if not config.norm_topk_prob:
            raise refused(model_type, "the weights of the chosen experts don't sum to one, but in llama.cpp they do")


def _check_places(model_type: str, config: Any) -> None:
    """Refuse an order of mixtures and other MLPs, or a router, that llama.cpp doesn't have."""
    last, ends = config.num_hidden_layers - 1, getattr(config, "moe_layer_end_index", None)
    if getattr(config, "moe_layer_interval", 1) != 1 or ends not in (None, last):
        raise refused(model_type, "some of its later MLPs aren't mixtures of experts, which the export doesn't support")
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        raise refused(model_type, "some of its MLPs aren't mixtures of experts, but in llama.cpp all of them are")
    if getattr(config, "norm_topk_prob", False):
        raise refused(model_type, "the weights of the chosen experts sum to one, but in llama.cpp they don't")


def refused(model_type: str, reason: str) -> ExportError:
    """The error for a model that GGUF can't represent."""
    return ExportError(
        f"no architecture of stock llama.cpp supports this {model_type} model: {reason}. Use --to vllm or --to hf, or "
        "--to dense for a model of stock shapes, which any converter accepts"
    )
