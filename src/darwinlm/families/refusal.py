"""Why a model isn't of a kind that can be pruned, read from its configuration.

What a block holds beside one attention and one MLP shows in the fields of a configuration, whatever the family is
called, so models that come later are told the reason too.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

RECURRENT = {"linear_attention", "mamba", "mamba2", "recurrent", "conv", "hybrid", "hybrid_sliding"}
"""Kinds of layers, as `layer_types` names them, that are neither attention nor MLP."""
STATES = ("mamba_d_state", "ssm_state_size", "state_size", "conv_L_cache", "linear_num_key_heads")
LATENT = ("kv_lora_rank", "o_lora_rank")
SHARED = ("hidden_size_per_layer_input", "num_kv_shared_layers")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
PARALLEL = ("parallel_attn", "use_parallel_residual")
SIDE_BY_SIDE = {"cohere", "cohere2", "codegen", "gptj", "phi"}
"""Model types whose configuration doesn't say that attention and MLP read the same stream."""


def why_not(config: Any, known: Container[str]) -> str | None:
    """The reason for people, as a clause; None where nothing but a description is missing.

    Args:
        config: of transformers, of a family that has no description.
        known: model types that have one.
    """
    text = getattr(config, "text_config", None)
    if text is not None and text is not config:
        return _text_part(text, known)
    if getattr(config, "is_encoder_decoder", False):
        return "it has an encoder beside its decoder, and only decoders are pruned"
    if RECURRENT & _layer_types(config) or _any(config, STATES):
        return (
            "some of its layers are recurrent (linear attention or a state space) or convolutions, and only attentions "
            "and MLPs are pruned"
        )
    if _any(config, LATENT):
        return "its keys and values are compressed (multi-head latent attention), and their heads can't be cut apart"
    if "indexed_attention" in _layer_types(config):
        return "an indexer chooses what its attention sees, which wouldn't fit fewer heads"
    if _any(config, SHARED):
        return "its layers share keys and values or have embeddings of their own, so none of them can be cut alone"
    if "swiglu_limit" in config.to_dict() and _any(config, EXPERTS):
        return "its experts have biases and interleave gate and up in one tensor, which isn't supported"
    if _any(config, EXPERTS):
        return "its mixtures of experts aren't described"
    if "per_layer_config" in config.to_dict():
        return "its own layers differ in size, which isn't described"
    if config.model_type in SIDE_BY_SIDE or _any(config, PARALLEL):
        return "its attention and MLP read the same residual stream side by side, and only one after the other is known"
    return None if _is_causal(config) else "it isn't a causal language model to transformers"


def _text_part(text: Any, known: Container[str]) -> str:
    more = f"it holds more than a language model; its text part is of the type '{text.model_type}'"
    if text.model_type in known:
        return f"{more}: save that part alone, and give it"
    reason = why_not(text, known)
    return more if reason is None else f"{more}, and {reason}"


def _layer_types(config: Any) -> set[str]:
    kinds = config.to_dict()
    found = kinds.get("layer_types") or kinds.get("layers_block_type") or kinds.get("block_types") or ()
    return {kind for kind in found if isinstance(kind, str)}


def _any(config: Any, names: tuple[str, ...]) -> bool:
    fields = config.to_dict()
    return any(fields.get(name) for name in names)


def _is_causal(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
