"""Sub-layers padded with zeros, which have the same output.

Added query heads and channels have zero columns in the output projection.

Letters: m residual width, h columns of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.expert_tensors import as_stored, by_rows, row_axis, shape_by_rows
from darwinlm.model.families.parts import Attention, Mlp, Part, RowUnit
from darwinlm.model.families.shapes import head_dim, output_name, resized, row_segments
from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.surgery.layer_table import ATTENTION_HEADS, KV_HEADS, LayerTable
from darwinlm.model.surgery.smaller_config import equal_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Tensors = dict[str, Tensor]


def stock_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Configuration of the family's class at the sizes before pruning."""
    tree, layers = checkpoint.config.to_dict(), range(checkpoint.n_blocks)
    columns = [head_dim(checkpoint.config, block) for block in layers]
    rows: LayerTable = {block: {} for block in layers}
    if len(set(columns)) > 1:  # KV heads belong to layers too
        heads = tree.get("stock_kv_heads") or [
            layer.num_key_value_heads for layer in checkpoint.config.per_layer_config
        ]
        rows = {block: {KV_HEADS: heads[block]} for block in layers}
    if checkpoint.family.attention.heads_divide_width:
        rows = {block: {ATTENTION_HEADS: tree["hidden_size"] // columns[block]} for block in layers}
    config = equal_config(checkpoint.family, tree, rows, columns)
    assert config is not None
    config.dtype = checkpoint.dtype
    return config


def own_kv_heads(tensors: Mapping[str, Tensor], part: Attention, sizes: LayerSizes) -> Tensors:
    """An attention whose query heads share KV heads unevenly, with a copy of its KV head for each query head.

    `tensors` are named inside the sub-layer: rows of projections [heads · h, m].
    """
    columns = sizes.head_dim
    owners = torch.tensor(sizes.owner_of_heads)[:, None] * columns + torch.arange(columns)

    def copied(kind: RowUnit, piece: Tensor, axis: int) -> Tensor:
        return piece.index_select(axis, owners.flatten()) if kind == "key_value" else piece

    return _changed(tensors, part, sizes.rows, copied)


def widen_mlp(tensors: Mapping[str, Tensor], part: Mlp, sizes: LayerSizes, target: LayerSizes) -> Tensors:
    """Add zero channels to an MLP, or to each of its experts."""
    if sizes.width == target.width:
        return dict(tensors)
    added = target.width - sizes.width

    def padded(_: RowUnit, piece: Tensor, axis: int) -> Tensor:
        shape = [*piece.shape]
        shape[axis] = added
        return torch.cat([piece, piece.new_zeros(shape)], axis)

    plain = {name: by_rows(part, name, tensor) for name, tensor in tensors.items()}
    wider = _changed(plain, part, sizes.rows, padded)
    return {name: as_stored(part, name, tensor) for name, tensor in wider.items()}


def _changed(
    tensors: Mapping[str, Tensor],
    part: Attention | Mlp,
    rows: Mapping[RowUnit, int],
    change: Callable[[RowUnit, Tensor, int], Tensor],
) -> Tensors:
    """Change the rows of input projections and the columns of the output projection.

    `rows` are the present numbers of rows of each kind. `change` gets a kind, a piece of a tensor with the rows of this
    kind, and the axis of its rows.
    """
    output = output_name(part, {f"{part.prefix}{name}" for name in tensors})
    changed: Tensors = {}
    for name, tensor in tensors.items():
        segments, axis = row_segments(part, name), row_axis(part, name)
        if f"{part.prefix}{name}" == output:
            changed[name] = change("query" if isinstance(part, Attention) else "channel", tensor, tensor.ndim - 1)
        elif segments:
            pieces = zip(segments, split_rows(tensor, segments, rows, axis), strict=True)
            changed[name] = torch.cat([change(kind, piece, axis) for kind, piece in pieces], axis)
        else:
            changed[name] = tensor
    return changed


def split_rows(
    tensor: Tensor, segments: Sequence[RowUnit], sizes: Mapping[RowUnit, int], axis: int = 0
) -> list[Tensor]:
    """The parts of a projection along the dimension of its rows; a fused tensor has several segments."""
    return list(torch.split(tensor, [sizes[kind] for kind in segments], axis)) if segments else []


def zero_sublayer(template: Mapping[str, Tensor], part: Part, sizes: LayerSizes, dtype: torch.dtype) -> Tensors:
    """A sub-layer with zero output: zero matrices and biases, norms of ones.

    Only names and shapes of `template`, the stock block, are read. Tensors, including norms, are named inside the
    block.
    """
    output = output_name(part, template)
    tensors: Tensors = {}
    for name, tensor in template.items():
        if not part.owns(name) and not part.has_norm(name):
            continue
        inside = name.removeprefix(part.prefix)
        stock = shape_by_rows(part, inside, tuple(tensor.shape))
        shape = resized(part, inside, stock, sizes, output=name == output)
        norm = len(shape) == 1 and name.endswith(".weight")
        filled = torch.ones(shape, dtype=dtype) if norm else torch.zeros(shape, dtype=dtype)
        tensors[name] = as_stored(part, inside, filled)
    return tensors
