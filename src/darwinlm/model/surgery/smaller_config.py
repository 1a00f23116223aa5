"""The configuration of a model with smaller layers: of the family's own class if they are equal, else of ours."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.ending import stock_class
from darwinlm.model.families.family import Family, is_custom, pruned_class
from darwinlm.model.families.parts import Experts
from darwinlm.model.families.pruned import pruned_classes, pruned_config
from darwinlm.model.families.shapes import head_dim
from darwinlm.model.surgery.layer_table import (
    ATTENTION_HEADS,
    KV_HEADS,
    QUERY_GROUPS,
    SHARED_WIDTH,
    SKIP,
    STORED_KV_HEADS,
    LayerRow,
    LayerTable,
    present_table,
)
from darwinlm.runtime.json_values import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OF_OUR_CLASS = (
    "per_layer_config", "auto_map", "architectures", "stock_kv_heads", QUERY_GROUPS, STORED_KV_HEADS, SHARED_WIDTH,
)  # fmt: skip
"""Configuration fields that the family's own class lacks."""


def smaller_config(checkpoint: Checkpoint, table: LayerTable) -> PreTrainedConfig:
    """Configuration of the smaller model.

    Equal layers use the family's configuration class, unequal ones our class with `per_layer_config`. `table` is from
    `layer_table`.
    """
    family = checkpoint.family
    tree = checkpoint.config.to_dict()
    if family.switch is not None:
        switched_off = {family.switch: type(getattr(checkpoint.config.per_layer_config[0], family.switch))()}
        table = {block: row | (switched_off if "mlp" in row.get(SKIP, ()) else {}) for block, row in table.items()}
    columns = [head_dim(checkpoint.config, block) for block in table]
    if len(set(columns)) > 1 and not is_custom(checkpoint.config) and present_table(checkpoint) == table:
        return copy.deepcopy(checkpoint.config)
    config = equal_config(family, tree, table, columns)
    if config is not None:
        return config
    changes: dict[str, object] = {}
    experts = family.mlp.experts
    if experts is not None and len({row[experts.count] for row in table.values() if experts.count in row}) > 1:
        changes["output_router_logits"] = False  # transformers' balancing loss needs equal numbers of experts
    config_class = pruned_classes(family)[0]
    config = pruned_config(config_class, checkpoint.config, table, changes)
    config.architectures = [pruned_class(family)]
    return config


def equal_config(
    family: Family, tree: JsonObject, table: LayerTable, columns: Sequence[int]
) -> PreTrainedConfig | None:
    """Configuration of the family's own class; None if the layers of `table` differ, or the class refuses their sizes.

    `tree` is the configuration as plain values, `columns` the head size of each layer.
    """
    per_layer: LayerTable = {}
    if len(set(columns)) > 1:  # then the family's class takes KV heads by layer too
        per_layer = {block: {name: row[name] for name in (KV_HEADS,) if name in row} for block, row in table.items()}
    common: LayerTable = {}
    for block, row in table.items():
        common[block] = {name: value for name, value in row.items() if name not in per_layer.get(block, ())}
    sizes = _common_sizes(common, family.mlp.experts)
    if sizes is None:
        return None
    tree = {name: value for name, value in tree.items() if name not in OF_OUR_CLASS}
    tree |= sizes | {"model_type": family.model_type}
    if family.attention.heads_divide_width and tree[ATTENTION_HEADS] * columns[0] != tree["hidden_size"]:
        return None
    if per_layer:
        tree["per_layer_config"] = {block: row | {"head_dim": columns[block]} for block, row in per_layer.items()}
    else:
        tree["head_dim"] = columns[0]
    # Some families' classes refuse head counts that don't divide the hidden size; our class accepts them.
    try:
        config = AutoConfig.for_model(**tree)
    except StrictDataclassError:
        return None
    config.architectures = [stock_class(family)]
    return config


def _common_sizes(table: LayerTable, experts: Experts | None) -> LayerRow | None:
    """Sizes common to all layers; None if layers differ. A layer that lacks a size may be combined with any.

    The width of a shared expert becomes its multiple of the other experts' width.
    """
    sizes: LayerRow = {}
    for row in table.values():
        differs = any(sizes.setdefault(name, value) != value for name, value in row.items())
        if differs or row.keys() & {SKIP, QUERY_GROUPS}:
            return None
    shared = sizes.pop(SHARED_WIDTH, None)
    if shared is not None and experts is not None and experts.shared_count is not None:
        multiple, remainder = divmod(shared, sizes[experts.width])
        if isinstance(experts.shared_count, int):
            return sizes if (multiple, remainder) == (experts.shared_count, 0) else None
        return None if remainder else {**sizes, experts.shared_count: multiple}
    return sizes
