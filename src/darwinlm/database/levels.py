"""Levels of a module: how much of it may be kept, what each choice weighs and how far it strays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.errors import RecipeError
from darwinlm.families.family import Family, ModuleKind
from darwinlm.families.shapes import ModuleShape, module_parameters
from darwinlm.recipe import UnitsSettings


@dataclass(frozen=True)
class Level:
    """One choice for one module.

    Attributes:
        groups: KV heads whose keys and values are kept; 1 for an MLP that is there, 0 when the module is gone.
        heads: query heads kept in each group, 0 where groups may keep different numbers; 1 for an MLP that is there.
        width: columns of the output projection kept.
        params: parameters of the module, norms included.
        query_heads: query heads kept in all; 0 for an MLP.
    """

    groups: int
    heads: int
    width: int
    params: int
    query_heads: int = 0

    @property
    def cache_heads(self) -> int:
        """Most heads that a KV cache stores: unevenly used groups are cached once for each of their query heads."""
        return self.groups if self.heads else self.query_heads


@dataclass(frozen=True)
class ModuleLevels:
    """A module and its levels by growing size: the first is gone, the last is dense, a single one is never cut."""

    block: int
    kind: ModuleKind
    levels: tuple[Level, ...]

    @property
    def name(self) -> str:
        """For people: `block 3 mlp`."""
        return f"block {self.block} {self.kind}"


def module_levels(family: Family, shape: ModuleShape, units: UnitsSettings) -> ModuleLevels:
    """All levels that the units allow.

    Raises:
        RecipeError: the MLP is narrower than one unit, or the attention can't be cut into such units.
    """
    if shape.kind == "mlp":
        counts = _mlp_counts(shape, units)
    elif family.attention.untouched:
        counts = [(shape.groups, shape.heads, shape.width)]
    else:
        counts = _attention_counts(shape, units)
    levels = []
    for groups, heads, width in counts:
        query_heads = 0 if shape.kind == "mlp" else width // shape.head_dim
        levels.append(Level(groups, heads, width, module_parameters(family, shape, groups, width), query_heads))
    if units.shares is not None:
        levels = _nearest(levels, units.shares, shape.width)
    return ModuleLevels(shape.block, shape.kind, tuple(sorted(levels, key=lambda level: (level.params, level.groups))))


def variants(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    """What a module is factorised for, the one with all columns last: numbers of query heads per KV group.

    0 stands for any query heads at all; an MLP has the one variant 1.

    Raises:
        RecipeError: the module's KV groups are used unevenly and the units aren't query heads.
    """
    if shape.kind == "mlp":
        return [1]
    if units.attention == "query_head" and shape.heads != 1:
        return [0]
    if shape.query_groups is not None:
        raise RecipeError(
            f"units.attention is {units.attention}, but the KV heads of {shape.name} are used by different numbers of "
            "query heads: only query_head can cut it further"
        )
    return list(range(1, shape.heads + 1)) if units.attention == "lattice" else [shape.heads]


def _mlp_counts(shape: ModuleShape, units: UnitsSettings) -> list[tuple[int, int, int]]:
    """(1, 1, width) of every level, zeros where nothing is kept."""
    if units.mlp_multiple > shape.width:
        raise RecipeError(
            f"units.mlp_multiple is {units.mlp_multiple}, but {shape.name} has only {shape.width} channels"
        )
    widths = sorted({*range(0, shape.width + 1, units.mlp_multiple), shape.width})
    return [(min(width, 1), min(width, 1), width) for width in widths]


def _attention_counts(shape: ModuleShape, units: UnitsSettings) -> list[tuple[int, int, int]]:
    """(KV groups, query heads per group, width) of every level."""
    counts = [(0, 0, 0)]
    if units.attention == "group_heads" and shape.heads != 1 and shape.query_groups is None:
        return counts + [(shape.groups, h, shape.groups * h * shape.head_dim) for h in range(1, shape.heads + 1)]
    for heads in variants(shape, units):
        if heads:
            counts += [(g, heads, g * heads * shape.head_dim) for g in range(1, shape.groups + 1)]
        else:
            counts += [(shape.groups, 0, width) for width in range(shape.head_dim, shape.width, shape.head_dim)]
            counts.append((shape.groups, shape.heads, shape.width))
    return counts


def _nearest(levels: list[Level], shares: Sequence[float], full: int) -> list[Level]:
    """The levels whose width is nearest to a share of the full width; of two as near, the wider."""
    widths = {level.width for level in levels}
    chosen = {min(widths, key=lambda width: (abs(width - share * full), -width)) for share in shares}
    return [level for level in levels if level.width in chosen]
