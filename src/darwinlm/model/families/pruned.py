"""Registered classes of models whose layers differ.

The classes are in `modeling_darwinlm`, which is also the file beside a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from darwinlm.model.families.family import PREFIX, Family, class_prefix, families
from darwinlm.model.families.modeling_darwinlm import define_classes, define_whole

if TYPE_CHECKING:
    from darwinlm.model.families.modeling_darwinlm import Classes


def pruned_classes(family: Family) -> Classes:
    """Define a family's classes and register them, so that its checkpoints load without `trust_remote_code`.

    Returns what `define_classes` does.
    """
    classes = config, model, causal, scores = define_classes(family.definition())
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    if causal is not None:
        AutoModelForCausalLM.register(config, causal, exist_ok=True)
    if scores is not None:
        AutoModelForSequenceClassification.register(config, scores, exist_ok=True)
    return classes


def register(model_type: str) -> None:
    """Register the classes of one of our model types, also of a model with further parts; without effect on others."""
    name = model_type.removeprefix(PREFIX)
    if not model_type.startswith(PREFIX):
        return
    family = next((family for family in families().values() if name in (family.model_type, *family.inside)), None)
    if family is None:
        return
    text = pruned_classes(family)
    if name in family.inside:
        config, model = define_whole(class_prefix(name), name, text)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)


def pruned_config(
    config_class: type[PreTrainedConfig],
    dense: PreTrainedConfig,
    per_layer: Mapping[int, Mapping[str, object]],
    changes: Mapping[str, object] | None = None,
) -> PreTrainedConfig:
    """The configuration of a model cut from `dense`, in the first of `pruned_classes`, with the attention of `dense`.

    `per_layer` holds num_attention_heads, num_key_value_heads, intermediate_size or `skip` for each layer that differs,
    `changes` the fields of the whole model that differ from those of `dense`.
    """
    replaced = ("model_type", "architectures", "auto_map", "transformers_version", "per_layer_config")
    values = {name: value for name, value in dense.to_dict().items() if name not in replaced}
    values |= changes or {}
    layers = {index: dict(overrides) for index, overrides in per_layer.items()}
    if "head_dim" in (dense.per_layer_attributes or ()):
        for index, layer in enumerate(dense.per_layer_config):
            layers.setdefault(index, {})["head_dim"] = layer.head_dim
        if not values.get("stock_kv_heads"):
            values["stock_kv_heads"] = [layer.num_key_value_heads for layer in dense.per_layer_config]
    return config_class(**values, per_layer_config=layers, attn_implementation=dense._attn_implementation)
