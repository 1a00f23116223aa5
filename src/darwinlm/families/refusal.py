"""Why a model isn't of a kind that can be pruned, read from its configuration.

What a block holds beside one attention and one MLP shows in the fields of a configuration, whatever the family is
called, so models that come later are told the reason too.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

Fields = Mapping[str, Any]


def _layers(*kinds: str) -> Callable[[Fields], bool]:
    """Whether a layer is of one of these kinds, under any of the names that such lists have."""

    def found(fields: Fields) -> bool:
        listed = fields.get("layer_types") or fields.get("layers_block_type") or fields.get("block_types") or ()
        return any(kind in kinds for kind in listed)

    return found


def _fields(*names: str) -> Callable[[Fields], bool]:
    """Whether one of these fields says something."""
    return lambda fields: any(fields.get(name) for name in names)


SIDE_BY_SIDE = ("cohere", "cohere2", "codegen", "gptj", "phi")
"""Model types whose configuration doesn't say that attention and MLP read the same stream."""
RECURRENT = (
    "some of its layers are recurrent (linear attention or a state space) or convolutions, and only attentions and "
    "MLPs are pruned"
)
PARALLEL = "its attention and MLP read the same residual stream side by side, and only one after the other is known"
EXPERTS = _fields("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
REASONS: tuple[tuple[Callable[[Fields], bool], str], ...] = (
    (_fields("is_encoder_decoder"), "it has an encoder beside its decoder, and only decoders are pruned"),
    (_layers("linear_attention", "mamba", "mamba2", "recurrent", "conv", "hybrid", "hybrid_sliding"), RECURRENT),
    (_fields("mamba_d_state", "ssm_state_size", "state_size", "conv_L_cache", "linear_num_key_heads"), RECURRENT),
    (
        _fields("kv_lora_rank", "o_lora_rank"),
        "its keys and values are compressed (multi-head latent attention), and their heads can't be cut apart",
    ),
    (_layers("indexed_attention"), "an indexer chooses what its attention sees, which wouldn't fit fewer heads"),
    (
        _fields("hidden_size_per_layer_input", "num_kv_shared_layers"),
        "its layers share keys and values or have embeddings of their own, so none of them can be cut alone",
    ),
    (
        lambda fields: "swiglu_limit" in fields and EXPERTS(fields),
        "its experts have biases and interleave gate and up in one tensor, which isn't supported",
    ),
    (EXPERTS, "its mixtures of experts aren't described"),
    (lambda fields: "per_layer_config" in fields, "its own layers differ in size, which isn't described"),
    (_fields("parallel_attn", "use_parallel_residual"), PARALLEL),
    (lambda fields: fields["model_type"] in SIDE_BY_SIDE, PARALLEL),
)
"""What shows in a configuration, and what is said of it; the first that holds counts."""


def why_not(config: Any, known: Container[str]) -> str | None:
    """The reason for people, as a clause; None where nothing but a description is missing.

    Args:
        config: of transformers, of a family that has no description.
        known: model types that have one.
    """
    text = getattr(config, "text_config", None)
    if text is not None:
        return _text_part(text, known)
    fields = config.to_dict()
    found = next((reason for holds, reason in REASONS if holds(fields)), None)
    return found or (None if _is_causal(config) else "it isn't a causal language model to transformers")


def _text_part(text: Any, known: Container[str]) -> str:
    more = f"it holds more than a language model; its text part is of the type '{text.model_type}'"
    if text.model_type in known:
        return f"{more}: save that part alone, and give it"
    reason = why_not(text, known)
    return more if reason is None else f"{more}, and {reason}"


def _is_causal(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
