"""Sizes of a model's blocks from the shapes of its weights, and sub-layers padded with zeros.

A padded sub-layer has the same output, since added query heads and channels have zero columns in the output projection.

Letters: m residual width, h columns of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.expert_tensors import as_stored, by_rows, row_axis, shape_by_rows
from darwinlm.model.families.parts import Attention, Mlp, Part, RowUnit
from darwinlm.model.families.shapes import head_dim, module_shapes, output_name, resized, row_segments
from darwinlm.model.surgery.shrink import KV_HEADS
from darwinlm.steps.stitch.stitch import equal_config

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of a block.

    Attributes:
        heads: Number of query heads; 0 without attention.
        width: Number of MLP channels; 0 without MLP.
        owners: KV head of each query head; None if they are shared evenly in order.
        experts: Number of experts of a mixture, each of width `width`; 0 if the MLP isn't a mixture.
        mixer: Whether it has another token mixer instead of an attention.
    """

    block: int
    heads: int
    groups: int
    width: int
    owners: tuple[int, ...] | None = None
    experts: int = 0
    mixer: bool = False

    @property
    def empty(self) -> bool:
        """Whether the block has no attention, MLP or other token mixer."""
        return self.heads == 0 and self.width == 0 and not self.mixer

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of query heads, KV heads and channels."""
        return self.heads, self.groups, self.width

    def rows(self, columns: int) -> dict[RowUnit, int]:
        """Rows of each kind, with heads of h columns."""
        query = self.heads * columns
        return {
            "query": query, "gated_query": 2 * query, "key_value": self.groups * columns, "channel": self.width
        }  # fmt: skip


def block_sizes(checkpoint: Checkpoint) -> list[BlockSizes]:
    """Sizes of all blocks, read from the weights; the width of a mixture of experts is that of one expert."""
    modules = {(module.block, module.kind): module for module in module_shapes(checkpoint, checkpoint.shapes())}
    blocks = []
    for block in range(checkpoint.n_blocks):
        attention, mlp = modules.get((block, "attention")), modules.get((block, "mlp"))
        heads = attention.width // attention.head_dim if attention else 0
        groups = attention.groups if attention else 0
        owners = attention.query_groups if attention else None
        width, experts = (mlp.width, mlp.experts) if mlp else (0, 0)
        blocks.append(BlockSizes(block, heads, groups, width, owners, experts, (block, "mixer") in modules))
    return blocks


def stock_config(checkpoint: Checkpoint) -> Any:
    """Configuration of the family's class at the sizes before pruning."""
    tree, layers = checkpoint.config.to_dict(), range(checkpoint.n_blocks)
    columns = [head_dim(checkpoint.config, block) for block in layers]
    rows: dict[int, dict[str, Any]] = {block: {} for block in layers}
    if len(set(columns)) > 1:  # KV heads belong to layers too
        heads = tree.get("stock_kv_heads") or [each.num_key_value_heads for each in checkpoint.config.per_layer_config]
        rows = {block: {KV_HEADS: heads[block]} for block in layers}
    config = equal_config(checkpoint.family, tree, rows, columns)
    assert config is not None
    config.dtype = checkpoint.dtype
    return config


def own_kv_heads(tensors: Mapping[str, Tensor], part: Attention, sizes: BlockSizes, columns: int) -> Tensors:
    """An attention whose query heads share KV heads unevenly, with a copy of its KV head for each query head.

    `tensors` are named inside the sub-layer: rows of projections [heads · h, m].
    """
    owners = torch.tensor(sizes.owners)[:, None] * columns + torch.arange(columns)

    def copied(kind: RowUnit, piece: Tensor, axis: int) -> Tensor:
        return piece.index_select(axis, owners.flatten()) if kind == "key_value" else piece

    return _changed(tensors, part, sizes.rows(columns), copied)


def widen_mlp(tensors: Mapping[str, Tensor], part: Mlp, sizes: BlockSizes, target: BlockSizes) -> Tensors:
    """Add zero channels to an MLP, or to each of its experts."""
    if sizes.width == target.width:
        return dict(tensors)
    added = target.width - sizes.width

    def padded(_: RowUnit, piece: Tensor, axis: int) -> Tensor:
        shape = [*piece.shape]
        shape[axis] = added
        return torch.cat([piece, piece.new_zeros(shape)], axis)

    plain = {name: by_rows(part, name, tensor) for name, tensor in tensors.items()}
    wider = _changed(plain, part, {"channel": sizes.width}, padded)
    return {name: as_stored(part, name, tensor) for name, tensor in wider.items()}


def _changed(
    tensors: Mapping[str, Tensor],
    part: Attention | Mlp,
    have: Mapping[RowUnit, int],
    change: Callable[[RowUnit, Tensor, int], Tensor],
) -> Tensors:
    """Change rows of input projections and columns of the output projection: each piece of a kind, along an axis."""
    output = output_name(part, {f"{part.prefix}{name}" for name in tensors})
    changed: Tensors = {}
    for name, tensor in tensors.items():
        segments, axis = row_segments(part, name), row_axis(part, name)
        if f"{part.prefix}{name}" == output:
            changed[name] = change("query" if isinstance(part, Attention) else "channel", tensor, tensor.ndim - 1)
        elif segments:
            pieces = zip(segments, split_rows(tensor, segments, have, axis), strict=True)
            changed[name] = torch.cat([change(kind, piece, axis) for kind, piece in pieces], axis)
        else:
            changed[name] = tensor
    return changed


def split_rows(
    tensor: Tensor, segments: Sequence[RowUnit], sizes: Mapping[RowUnit, int], axis: int = 0
) -> list[Tensor]:
    """The parts of a projection along the dimension of its rows; a fused tensor has several segments."""
    return list(torch.split(tensor, [sizes[kind] for kind in segments], axis)) if segments else []


def zero_sublayer(
    template: Mapping[str, Tensor], part: Part, sizes: BlockSizes, columns: int, dtype: torch.dtype
) -> Tensors:
    """A sub-layer with zero output: zero matrices and biases, norms of ones.

    Only names and shapes of `template`, the stock block, are read. Tensors, including norms, are named inside the
    block.
    """
    rows, output = sizes.rows(columns), output_name(part, template)
    width = rows["query" if isinstance(part, Attention) else "channel"]
    tensors: Tensors = {}
    for name, tensor in template.items():
        if not part.owns(name) and name.partition(".")[0] not in part.norms:
            continue
        inside = name.removeprefix(part.prefix)
        stock = shape_by_rows(part, inside, tuple(tensor.shape))
        shape = resized(part, inside, stock, rows, width if name == output else None, sizes.experts or None)
        norm = len(shape) == 1 and name.endswith(".weight")
        made = torch.ones(shape, dtype=dtype) if norm else torch.zeros(shape, dtype=dtype)
        tensors[name] = as_stored(part, inside, made)
    return tensors
