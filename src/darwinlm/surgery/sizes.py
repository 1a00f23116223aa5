"""Sizes of a model's blocks from the shapes of its weights, and sub-layers padded with zeros.

A padded sub-layer has the same output, since added query heads and channels have zero columns in the output projection.

Letters: m residual width, h columns of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.expert_tensors import as_stored, by_rows, row_axis, shape_by_rows
from darwinlm.families.family import class_prefix
from darwinlm.families.parts import Attention, Mlp, Part, RowUnit
from darwinlm.families.shapes import gated_rows, head_dim, module_shapes, output_name, resized, row_segments
from darwinlm.runtime.errors import ExportError

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
    stored = checkpoint.stored.shapes()
    shapes = {name: parts.shape(stored.__getitem__) for name, parts in checkpoint.tensors.items()}
    modules = {(module.block, module.kind): module for module in module_shapes(checkpoint, shapes)}
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
    tree = checkpoint.config.to_dict()
    for name in ("per_layer_config", "auto_map", "architectures"):
        tree.pop(name, None)
    columns = [head_dim(checkpoint.config, block) for block in range(checkpoint.n_blocks)]
    if len(set(columns)) > 1:  # KV heads belong to layers too
        heads = tree.pop("stock_kv_heads", None) or [
            layer.num_key_value_heads for layer in checkpoint.config.per_layer_config
        ]
        rows = zip(columns, heads, strict=True)
        tree["per_layer_config"] = {
            block: {"head_dim": size, "num_key_value_heads": count} for block, (size, count) in enumerate(rows)
        }
    config = AutoConfig.for_model(**{**tree, "model_type": checkpoint.family.model_type, "head_dim": columns[0]})
    config.architectures = [f"{class_prefix(checkpoint.family.model_type)}ForCausalLM"]
    config.dtype = checkpoint.dtype
    return config


def head_owners(sizes: BlockSizes) -> tuple[int, ...]:
    """KV head of each query head."""
    if sizes.owners is not None:
        return sizes.owners
    return tuple(head * sizes.groups // sizes.heads for head in range(sizes.heads))


def fit_attention(
    tensors: Mapping[str, Tensor], part: Attention, sizes: BlockSizes, columns: int, target: BlockSizes
) -> Tensors:
    """Copy the heads of an attention into one of other sizes without changing the result.

    `tensors` are named inside the sub-layer: rows of projections [heads · h, m], output [m, heads · h]. In the target,
    every query head has a KV head of its own, or heads are shared evenly. Raises ExportError if a KV head has more
    query heads than in the target.
    """
    query, key_value = (_rows(heads, columns) for heads in _sources(sizes, target))
    rows: dict[RowUnit, Tensor] = {
        "query": query, "gated_query": gated_rows(query, columns), "key_value": key_value
    }  # fmt: skip
    return _taken(tensors, part, sizes.rows(columns), rows)


def _sources(sizes: BlockSizes, target: BlockSizes) -> tuple[list[int], list[int]]:
    """The query head and the KV head that belong in each place of the target; -1 for zeros."""
    if sizes.owners is not None and target.heads == target.groups == sizes.heads:
        return list(range(sizes.heads)), list(sizes.owners)
    share = target.heads // target.groups
    query, taken = [-1] * target.heads, [0] * target.groups
    for head, owner in enumerate(head_owners(sizes)):
        if owner >= target.groups or taken[owner] == share:
            raise ExportError(
                f"block {sizes.block}: {sizes.heads} query heads over {sizes.groups} KV heads don't fit into "
                f"{target.heads} over {target.groups}"
            )
        query[owner * share + taken[owner]] = head
        taken[owner] += 1
    return query, [group if group < sizes.groups else -1 for group in range(target.groups)]


def widen_mlp(tensors: Mapping[str, Tensor], part: Mlp, sizes: BlockSizes, target: BlockSizes) -> Tensors:
    """Add zero channels to an MLP, or to each of its experts."""
    if sizes.width == target.width:
        return dict(tensors)
    output = output_name(part, {f"{part.prefix}{name}" for name in tensors})
    assert output is not None
    plain = {name: by_rows(part, name, tensor) for name, tensor in tensors.items()}
    have = plain[output.removeprefix(part.prefix)].shape[-1]
    rows = torch.arange(target.width)
    wider = _taken(plain, part, {"channel": have}, {"channel": rows.where(rows < have, -1)})
    return {name: as_stored(part, name, tensor) for name, tensor in wider.items()}


def _taken(
    tensors: Mapping[str, Tensor], part: Attention | Mlp, have: Mapping[RowUnit, int], rows: Mapping[RowUnit, Tensor]
) -> Tensors:
    """Rows of input projections and columns of the output projection, of which each kind has `have`; -1 for zeros."""
    output = output_name(part, {f"{part.prefix}{name}" for name in tensors})
    taken: Tensors = {}
    for name, tensor in tensors.items():
        segments, axis = row_segments(part, name), row_axis(part, name)
        if f"{part.prefix}{name}" == output:
            taken[name] = _take(tensor, rows["query" if isinstance(part, Attention) else "channel"], tensor.ndim - 1)
        elif segments:
            pieces = zip(segments, split_rows(tensor, segments, have, axis), strict=True)
            taken[name] = torch.cat([_take(piece, rows[kind], axis) for kind, piece in pieces], axis)
        else:
            taken[name] = tensor
    return taken


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


def _rows(heads: Sequence[int], columns: int) -> Tensor:
    """Rows of heads; those of head -1 are negative."""
    return (torch.tensor(heads, dtype=torch.long)[:, None] * columns + torch.arange(columns)).reshape(-1)


def _take(tensor: Tensor, rows: Tensor, axis: int) -> Tensor:
    taken = tensor.index_select(axis, rows.clamp_min(0))
    return taken.index_fill_(axis, (rows < 0).nonzero()[:, 0], 0)
