"""The sizes of modules as configuration fields of their layers: rows of `per_layer_config`."""

from __future__ import annotations

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import Family
from darwinlm.model.families.parts import KINDS
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.layer_sizes import LayerSizes, ModuleSizes
from darwinlm.runtime.json_values import JsonObject

ATTENTION_HEADS = "num_attention_heads"
KV_HEADS = "num_key_value_heads"
QUERY_GROUPS = "query_groups"
STORED_KV_HEADS = "stored_kv_heads"
SHARED_WIDTH = "shared_expert_width"
SKIP = "skip"

LayerRow = JsonObject
"""Configuration fields of one layer by name: numbers, the lists `skip` and `query_groups`, and others of a family."""
LayerTable = dict[int, LayerRow]
"""Rows of all layers by number, as in `per_layer_config`."""


def layer_overrides(family: Family, sizes: LayerSizes) -> LayerRow:
    """Configuration fields of a layer that has a module of these sizes."""
    if sizes.kind in ("mixer", "tail"):
        return {}
    if sizes.kind == "mlp":
        experts = family.mlp.experts
        if experts is None or not sizes.experts:
            return {family.mlp.width: sizes.width, **family.mlp.with_width}
        row = {experts.width: sizes.width, experts.count: sizes.experts}
        return {**row, SHARED_WIDTH: sizes.shared} if sizes.shared else row
    if sizes.owners is None:
        return {ATTENTION_HEADS: sizes.heads, KV_HEADS: sizes.groups}
    repeated = {QUERY_GROUPS: list(sizes.owners), STORED_KV_HEADS: sizes.groups}
    return {ATTENTION_HEADS: sizes.heads, KV_HEADS: sizes.heads, **repeated}


def layer_table(family: Family, n_blocks: int, modules: ModuleSizes) -> LayerTable:
    """The rows of a model with these modules, and the sub-layers that each layer skips."""
    table: LayerTable = {}
    for block in range(n_blocks):
        kept = [modules[block, kind] for kind in KINDS if (block, kind) in modules and modules[block, kind].width]
        row: LayerRow = {}
        for sizes in kept:
            row |= layer_overrides(family, sizes)
        # A mixer stands in place of an attention.
        present = {"attention" if sizes.kind == "mixer" else sizes.kind for sizes in kept}
        skipped = [kind for kind in ("attention", "mlp") if kind not in present]
        table[block] = row | ({SKIP: skipped} if skipped else {})
    return table


def present_table(checkpoint: Checkpoint) -> LayerTable:
    """The rows of a checkpoint at its present sizes."""
    modules = {shape.place: shape.sizes for shape in module_shapes(checkpoint)}
    return layer_table(checkpoint.family, checkpoint.n_blocks, modules)
