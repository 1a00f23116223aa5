"""Reasons why a model can't be pruned, read from its configuration.

The fields of a configuration show whether blocks have other parts than one attention and one MLP. Many families use the
same field names, so that the check also covers later models.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

Fields = Mapping[str, Any]


def _layers(*kinds: str) -> Callable[[Fields], bool]:
    """Condition that a layer has one of these kinds, in any of the usual lists of layer kinds."""

    def found(fields: Fields) -> bool:
        listed = fields.get("layer_types") or fields.get("layers_block_type") or fields.get("block_types") or ()
        return any(kind in kinds for kind in listed)

    return found


def _fields(*names: str) -> Callable[[Fields], bool]:
    """Condition that one of these fields is set."""
    return lambda fields: any(fields.get(name) for name in names)


SIDE_BY_SIDE = ("cohere", "cohere2", "codegen", "gptj", "phi")
"""Model types with parallel attention and MLP, which their configuration doesn't show."""
RECURRENT = (
    "some of its layers are recurrent (linear attention or a state space) or convolutions, of a kind that isn't "
    "supported"
)
PARALLEL = "its attention and MLP run in parallel on the same residual stream, and only sequential ones are supported"
EXPERTS = _fields("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
NOT_DESCRIBED = "its kind of mixture of experts isn't supported"
REASONS: tuple[tuple[Callable[[Fields], bool], str], ...] = (
    (_fields("is_encoder_decoder"), "it has an encoder, and only models with just a decoder are supported"),
    (_layers("linear_attention", "mamba", "mamba2", "recurrent", "conv", "hybrid", "hybrid_sliding"), RECURRENT),
    (_fields("mamba_d_state", "ssm_state_size", "state_size", "conv_L_cache", "linear_num_key_heads"), RECURRENT),
    (
        _fields("kv_lora_rank", "o_lora_rank"),
        "its keys and values are compressed (multi-head latent attention), so that heads can't be removed separately",
    ),
    (_layers("indexed_attention"), "an indexer selects the tokens for its attention, and doesn't support fewer heads"),
    (
        _fields("hidden_size_per_layer_input", "num_kv_shared_layers"),
        "its layers share keys and values or have per-layer embeddings, so that no layer can be cut alone",
    ),
    (
        lambda fields: fields["model_type"] == "llama4_text",
        "its router scales the inputs of the experts, and only factors on their outputs are supported",
    ),
    (EXPERTS, NOT_DESCRIBED),
    (lambda fields: "per_layer_config" in fields, "its layers differ in size, which isn't supported"),
    (_fields("parallel_attn", "use_parallel_residual"), PARALLEL),
    (lambda fields: fields["model_type"] in SIDE_BY_SIDE, PARALLEL),
)
"""Conditions on the configuration, and the reason for each; the first that holds counts."""


def why_not(config: Any, known: Container[str]) -> str | None:
    """The reason why a model's family has no description, as a clause; None if only that is missing.

    `known` are model types with a description.
    """
    text = getattr(config, "text_config", None)
    if text is not None:
        return _text_part(text, known)
    fields = config.to_dict()
    reason = next((reason for holds, reason in REASONS if holds(fields)), None)
    if reason in (None, NOT_DESCRIBED) and not _is_causal(config):
        return "transformers has no causal language model for it"
    return reason


def _text_part(text: Any, known: Container[str]) -> str:
    more = f"it is more than a language model; its text part has the type '{text.model_type}'"
    if text.model_type in known:
        return f"{more}: save this part separately and use it"
    reason = why_not(text, known)
    return more if reason is None else f"{more}, and {reason}"


def _is_causal(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
