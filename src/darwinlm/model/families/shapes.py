"""Modules of a checkpoint with their sizes and tensors, and exact parameter counts at any sizes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.expert_tensors import experts_with, row_axis, shape_by_rows
from darwinlm.model.families.family import Family
from darwinlm.model.families.parts import Mixer, Mlp, ModuleKind, Part, RowUnit, Tail
from darwinlm.model.layer_sizes import LayerSizes, PlacedModule
from darwinlm.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModuleShape(PlacedModule):
    """One module in a checkpoint: its sizes and its tensors.

    Attributes:
        sizes: Its sizes.
        tensors: Shape of each of its tensors, norms included, by name inside the block; those of experts as [experts,
            rows, columns].
        output: Name of the output projection's weight inside the block.
        chosen: Number of experts that a token uses; 0 if it isn't a mixture.
        droppable: Whether single experts of a mixture can be dropped.
        fixed: Whether it is never cut or removed.
    """

    sizes: LayerSizes
    tensors: Shapes
    output: str
    chosen: int = 0
    droppable: bool = True
    fixed: bool = False


def module_shapes(checkpoint: Checkpoint, shapes: Shapes | None = None) -> list[ModuleShape]:
    """All existing modules of a model in order; without the shapes of its tensors, from the skeleton.

    Raises CheckpointError if the tensors of a module have inconsistent shapes.
    """
    if shapes is None:
        parameters = checkpoint.outline.named_parameters(remove_duplicate=False)
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    family = checkpoint.family
    modules: list[ModuleShape] = []
    for block in range(checkpoint.n_blocks):
        prefix = checkpoint.block_prefix(block)
        inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        query_groups = getattr(checkpoint.config.per_layer_config[block], "query_groups", None)
        owners = tuple(query_groups) if query_groups else None
        cut = family.cut_kinds(checkpoint.config, block)
        for kind in family.kinds:
            part = family.module(kind)
            output = output_name(part, inside)
            if output is not None:
                shape = _module_shape(block, kind, checkpoint, inside, output, owners)
                modules.append(replace(shape, fixed=kind not in cut))
    return modules


def output_name(part: Part, inside: Container[str]) -> str | None:
    """Name of the output projection's weight among the tensors of a block; None if the sub-layer is absent."""
    names = [f"{part.prefix}{part.output}.weight" if part.output else f"{part.prefix}weight"]
    if isinstance(part, Mlp) and part.experts is not None:
        names.append(f"{part.prefix}{part.experts.name}.{part.experts.output}")
    return next((name for name in names if name in inside), None)


def head_dim(config: PreTrainedConfig, block: int = 0) -> int:
    """Columns of a block's heads: from the configuration, else the hidden size divided by heads as in transformers."""
    config = config.per_layer_config[block] if getattr(config, "is_heterogeneous", False) else config
    columns = getattr(config, "head_dim", None)
    return int(columns) if columns else int(config.hidden_size) // int(config.num_attention_heads)


def _module_shape(
    block: int,
    kind: ModuleKind,
    checkpoint: Checkpoint,
    inside: Shapes,
    output: str,
    owners: tuple[int, ...] | None,
) -> ModuleShape:
    family, columns = checkpoint.family, head_dim(checkpoint.config, block)
    part = family.module(kind)
    names = [name for name in inside if part.owns(name) or part.has_norm(name)]
    tensors = {name: shape_by_rows(part, name.removeprefix(part.prefix), inside[name]) for name in names}
    width = tensors[output][-1]
    plain = ModuleShape(block, kind, LayerSizes(kind, width), tensors, output)
    if isinstance(part, Mixer | Tail):
        return plain
    if isinstance(part, Mlp):
        if part.experts is None or len(tensors[output]) < 3:
            return plain
        sizes = replace(plain.sizes, experts=tensors[output][0], shared=_shared_width(part, tensors))
        chosen, droppable = part.experts.chosen_of(checkpoint.config), part.experts.droppable(checkpoint.config)
        return replace(plain, sizes=sizes, chosen=chosen, droppable=droppable)
    if not part.key_value:  # compressed keys and values
        heads = int(checkpoint.config.per_layer_config[block].num_attention_heads)
        return replace(plain, sizes=replace(plain.sizes, groups=heads, head_dim=width // heads))
    key_shape = tensors.get(f"{part.prefix}{part.key_value[0]}.weight")
    if key_shape is None:  # reused keys and values
        groups = int(checkpoint.config.per_layer_config[block].num_key_value_heads)
    else:  # a fused tensor holds queries and values too
        segments = part.segments[part.key_value[0]]
        groups = (key_shape[0] - segments.count("query") * width) // (segments.count("key_value") * columns)
    sizes = replace(plain.sizes, groups=groups, head_dim=columns, even=owners is None, owners=owners)
    if owners is None and width % (groups * columns):
        raise CheckpointError(
            f"block {block}: {width // columns} query heads don't divide by {groups} KV heads of {columns} columns "
            f"({family.model_type}); such a model can't be pruned by KV groups"
        )
    return replace(plain, sizes=sizes)


def _shared_width(part: Mlp, tensors: Shapes) -> int:
    """`LayerSizes.shared` of a mixture."""
    if part.experts is None or part.experts.shared_count is None:
        return 0
    output_shape = tensors.get(f"{part.prefix}{part.experts.shared}.{part.output}.weight")
    return 0 if output_shape is None else output_shape[-1]


def module_parameters(family: Family, shape: ModuleShape, sizes: LayerSizes) -> int:
    """Number of parameters of a module cut to other sizes, including norms.

    A removed module has only those of a norm that stays (`SubLayer.sum_norm`).
    """
    part = family.module(shape.kind)
    if sizes.width == 0:
        return sum(prod(size) for name, size in shape.tensors.items() if part.stays(name))
    return sum(
        prod(resized(part, name.removeprefix(part.prefix), size, sizes, output=name == shape.output))
        for name, size in shape.tensors.items()
    )


def resized(part: Part, name: str, shape: tuple[int, ...], sizes: LayerSizes, *, output: bool) -> tuple[int, ...]:
    """Shape of a tensor inside a sub-layer that is cut or padded to other sizes.

    `shape` is the present one, and `output` says whether the tensor is the output projection's weight.
    """
    size, segments = list(shape), row_segments(part, name)
    if sizes.experts and isinstance(part, Mlp) and part.experts is not None and part.experts.counted(name):
        size[part.experts.axis(name)] = sizes.experts
    if output:
        size[-1] = sizes.width
    elif segments:
        size[row_axis(part, name)] = sum(sizes.rows[segment] for segment in segments)
    return tuple(size)


def gated_rows(columns: Tensor, head_dim: int) -> Tensor:
    """Rows of a query projection with gates for whole heads (`Attention.gated`), from columns of the output projection.

    Columns are [n · h] int64, a head of h after the other. Returns [2 · n · h] int64: for each head the rows of its
    queries, then those of its gate.
    """
    heads = columns.view(-1, head_dim)
    queries = heads + heads // head_dim * head_dim
    return torch.cat([queries, queries + head_dim], dim=1).flatten()


def row_segments(part: Part, name: str) -> list[RowUnit]:
    """Kinds of rows of a tensor inside a sub-layer, in order; empty if they are never cut."""
    owner, _, leaf = name.rpartition(".")
    experts = experts_with(part, name)
    return part.segments.get(owner, []) if experts is None else experts.rows_of(leaf)
