"""Registered classes of models whose layers differ.

The classes are in `modeling_darwinlm`, which is also the file beside a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from darwinlm.families.modeling_darwinlm import (
    LLAMA,
    NAMES,
    Norms,
    auto_map,
    define_classes,
    define_whole,
    modeling_source,
    whole_auto_map,
)

__all__ = ["auto_map", "modeling_source", "pruned_classes", "pruned_config", "pruned_whole", "whole_auto_map"]


def pruned_classes(
    prefix: str, module: str, infix: str = "", norms: Norms = LLAMA, names: Sequence[str] = NAMES
) -> tuple[type, type, type]:
    """Define a family's classes and register them, so that its checkpoints load without `trust_remote_code`.

    Args:
        prefix: Prefix of the family's class names, "Llama".
        module: The family's package in `transformers.models`, "llama".
        infix: "Text" for a text-only part of a multimodal family (Gemma3TextConfig), else empty.
        norms: Names of the norms that are removed with a layer's attention, and of those removed with its MLP.
        names: Names of a layer's attention and of its MLP.

    Returns:
        The configuration, the decoder and the causal language model.
    """
    config, model, causal = define_classes(prefix, module, infix, norms, names)
    AutoConfig.register(config.model_type, config, exist_ok=True)  # type: ignore[attr-defined]
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal, exist_ok=True)
    return config, model, causal


def pruned_whole(prefix: str, module: str, text: tuple[type, type, type]) -> tuple[type, type]:
    """Define and register classes with further parts around a language model.

    Arguments and results are those of `modeling_darwinlm.define_whole`.
    """
    config, model = define_whole(prefix, module, text)
    AutoConfig.register(config.model_type, config, exist_ok=True)  # type: ignore[attr-defined]
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
    return config, model


def pruned_config(
    config_class: type, dense: Any, per_layer: Mapping[int, Mapping[str, Any]], changes: Mapping[str, Any] | None = None
) -> Any:
    """The configuration of a model cut from `dense`.

    Args:
        config_class: The first of `pruned_classes`.
        dense: Configuration of the dense model.
        per_layer: Values of num_attention_heads, num_key_value_heads, intermediate_size or `skip` for each layer that
            differs.
        changes: Fields of the whole model that differ from those of `dense`.

    Returns:
        A configuration of class `config_class`, with the attention implementation of `dense`.
    """
    of_the_class = ("model_type", "architectures", "auto_map", "transformers_version", "per_layer_config")
    values = {name: value for name, value in dense.to_dict().items() if name not in of_the_class}
    values |= changes or {}
    layers = {index: dict(overrides) for index, overrides in per_layer.items()}
    if "head_dim" in (dense.per_layer_attributes or ()):
        for index, layer in enumerate(dense.per_layer_config):
            layers.setdefault(index, {})["head_dim"] = layer.head_dim
        if not values.get("stock_kv_heads"):
            values["stock_kv_heads"] = [layer.num_key_value_heads for layer in dense.per_layer_config]
    return config_class(**values, per_layer_config=layers, attn_implementation=dense._attn_implementation)
