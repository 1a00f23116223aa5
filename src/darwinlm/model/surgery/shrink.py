"""Cut one module to a level: rows of its input projections, columns of its output projection."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from darwinlm.model.families.block_parts import part_of
from darwinlm.model.families.expert_tensors import as_stored, by_rows
from darwinlm.model.families.family import Family
from darwinlm.model.families.modeling_darwinlm import keep_heads, keep_shared_width, share_kv_heads
from darwinlm.model.families.parts import Experts, Mlp, Part, RowUnit
from darwinlm.model.families.shapes import ModuleShape, gated_rows, row_segments
from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.surgery.layer_table import QUERY_GROUPS, SHARED_WIDTH, STORED_KV_HEADS, layer_overrides
from darwinlm.model.units.levels import Kept
from darwinlm.runtime.compute import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def shrink_tensors(family: Family, shape: ModuleShape, tensors: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """The tensors of one sub-layer cut to the kept part; their names are those inside it, without the block's norms."""
    part = family.module(shape.kind)
    if kept.weight is None:
        return dict(tensors)
    if kept.experts is not None and isinstance(part, Mlp) and part.experts is not None:
        experts = to_device(kept.experts, next(iter(tensors.values())).device)
        tensors = {name: _take_experts(part.experts, name, tensor, experts) for name, tensor in tensors.items()}
    tensors = {name: by_rows(part, name, tensor) for name, tensor in tensors.items()}
    sizes, rows = shape.sizes.rows, kept_rows(shape, kept)
    cut: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        segments = row_segments(part, name)
        if f"{part.prefix}{name}" == shape.output:
            cut[name] = to_device(kept.weight, tensor.device).to(tensor.dtype)
        elif segments:
            starts = [0, *accumulate(sizes[segment] for segment in segments)]
            chosen = [start + rows[segment] for start, segment in zip(starts, segments, strict=False)]
            cut[name] = _take_rows(tensor, to_device(torch.cat(chosen, dim=-1), tensor.device))
        else:
            cut[name] = tensor
    return {name: as_stored(part, name, tensor) for name, tensor in cut.items()}


def _take_experts(names: Experts, name: str, tensor: Tensor, kept: Tensor) -> Tensor:
    """The kept experts, [e] int64, of a tensor inside a mixture; a tensor that doesn't count experts is unchanged."""
    if not names.counted(name):
        return tensor
    return tensor.index_select(names.axis(name), to_device(kept, tensor.device))


def _take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows [k] of a tensor [r, ...], or rows [e, k] of each expert of a tensor [e, r, c] or of biases [e, r]."""
    if rows.ndim == 1:
        return tensor.index_select(0, rows)
    return tensor.gather(1, rows[:, :, None].expand(-1, -1, tensor.shape[2]) if tensor.ndim > rows.ndim else rows)


def kept_rows(shape: ModuleShape, kept: Kept) -> dict[RowUnit, Tensor]:
    """Kept rows of query heads, KV heads and MLP channels (for each expert)."""
    if kept.groups is None:
        return {"channel": kept.columns}
    columns = shape.sizes.head_dim
    key_value = kept.groups[:, None] * columns + torch.arange(columns)
    gated = gated_rows(kept.columns, columns)
    return {"query": kept.columns, "gated_query": gated, "key_value": key_value.reshape(-1)}


def small_module(
    block: nn.Module,
    config: PreTrainedConfig,
    family: Family,
    number: int,
    sizes: LayerSizes,
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    """Build the sub-layer of block `number` at other sizes, in the family's class, around the given tensors.

    The sizes must keep something, and the owners of uneven query heads are known. The tensors, by name inside the
    sub-layer, are used, not copied. The block of the dense model gives the class.
    """
    attention = sizes.kind == "attention"
    overrides = layer_overrides(family, sizes)
    if attention:
        overrides = {QUERY_GROUPS: None, STORED_KV_HEADS: None, **overrides, "head_dim": sizes.head_dim}
    else:
        overrides = {SHARED_WIDTH: None, **overrides}
    layer_config = copy.copy(config.per_layer_config[number])
    layer_config.__dict__.pop("_heterogeneity_spec", None)
    for name, value in overrides.items():
        setattr(layer_config, name, value)
    narrowed = family.attention.narrowed
    if attention and narrowed[0]:
        layer_config.num_attention_heads = layer_config.hidden_size // sizes.head_dim
    with torch.device("meta"):
        layer = type(block)(layer_config, number)
        if attention and narrowed[0]:
            keep_heads(layer, sizes.heads, layer_config.num_attention_heads, narrowed)
        module = part_of(layer, family.module(sizes.kind))
        if attention:
            share_kv_heads(module, layer_config)
        else:
            keep_shared_width(module, layer_config, family.mlp.dependent)
    module.load_state_dict(dict(tensors), assign=True)
    return module.eval().requires_grad_(requires_grad=False)


def split_block(inside: Mapping[str, Tensor], part: Part) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of one sub-layer by name inside it, and its norms by name inside the block."""
    tensors = {name.removeprefix(part.prefix): tensor for name, tensor in inside.items() if part.owns(name)}
    norms = {name: tensor for name, tensor in inside.items() if part.has_norm(name)}
    return tensors, norms
