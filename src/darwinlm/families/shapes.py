"""Sizes of a block's modules, and what a module weighs at any level: exact, from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from darwinlm.errors import CheckpointError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import Attention, Family, Mlp, ModuleKind

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModuleShape:
    """One attention or MLP module as it is in the checkpoint.

    Attributes:
        block: index of its block.
        kind: attention or mlp.
        tensors: shape of each of its tensors, norms included, by name inside the block.
        groups: KV groups of an attention; 1 for an MLP.
        heads: query heads in each group; 1 for an MLP.
        head_dim: columns of a query head; 1 for an MLP.
        width: columns of the output projection: groups x heads x head_dim, or MLP channels.
    """

    block: int
    kind: ModuleKind
    tensors: Shapes
    groups: int
    heads: int
    head_dim: int
    width: int

    @property
    def name(self) -> str:
        """For people: `block 3 mlp`."""
        return f"block {self.block} {self.kind}"


def module_shapes(checkpoint: Checkpoint, shapes: Shapes | None = None) -> list[ModuleShape]:
    """All modules of a model in order, removed ones left out.

    Args:
        checkpoint: the model.
        shapes: shapes of its tensors; None reads them from the skeleton.

    Raises:
        CheckpointError: the tensors of a module don't fit each other.
    """
    if shapes is None:
        state = checkpoint.skeleton().state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    family = checkpoint.family
    found: list[ModuleShape] = []
    for block in range(checkpoint.n_blocks):
        prefix = checkpoint.block_prefix(block)
        inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        parts = [p for p in (family.attention, family.mlp) if f"{p.name}.{p.output}.weight" in inside]
        found += [_module_shape(block, family, part, inside, head_dim(checkpoint.config)) for part in parts]
    return found


def head_dim(config: object) -> int:
    """Columns of one head: stated by the configuration, else hidden size over heads as transformers does."""
    stated = getattr(config, "head_dim", None)
    return int(stated) if stated else int(config.hidden_size) // int(config.num_attention_heads)  # type: ignore[attr-defined]


def _module_shape(block: int, family: Family, part: Attention | Mlp, inside: Shapes, columns: int) -> ModuleShape:
    names = [name for name in inside if name.startswith(part.name + ".") or name.partition(".")[0] in part.norms]
    tensors = {name: inside[name] for name in names}
    width = tensors[f"{part.name}.{part.output}.weight"][1]
    if isinstance(part, Mlp):
        return ModuleShape(block, "mlp", tensors, 1, 1, 1, width)
    groups = tensors[f"{part.name}.{part.key_value[0]}.weight"][0] // columns
    heads = width // (groups * columns)
    if groups * heads * columns != width:
        raise CheckpointError(
            f"block {block}: {width // columns} query heads don't divide by {groups} KV heads of {columns} columns "
            f"({family.model_type}); such a model can't be pruned by KV groups"
        )
    return ModuleShape(block, "attention", tensors, groups, heads, columns, width)


def module_parameters(family: Family, shape: ModuleShape, groups: int, heads: int, width: int) -> int:
    """Parameters of a module that keeps so many KV groups, query heads per group, and columns; norms included.

    A module that keeps nothing has none: its norms go with it.
    """
    if width == 0:
        return 0
    part = family.module(shape.kind)
    total = 0
    for name, size in shape.tensors.items():
        owner, _, leaf = name.removeprefix(part.name + ".").rpartition(".")
        total += _kept_size(part, owner, leaf, size, groups=groups, heads=heads, width=width, head_dim=shape.head_dim)
    return total


def _kept_size(
    part: Attention | Mlp,
    owner: str,
    leaf: str,
    size: tuple[int, ...],
    *,
    groups: int,
    heads: int,
    width: int,
    head_dim: int,
) -> int:
    if isinstance(part, Mlp):
        rows = width if owner in part.inputs else None
    elif owner in part.query:
        rows = groups * heads * head_dim
    elif owner in part.key_value:
        rows = groups * head_dim
    else:
        rows = None
    if rows is not None:
        return rows * prod(size[1:])
    if owner == part.output and leaf == "weight":
        return size[0] * width
    return prod(size)
