"""Levels of a module: how much of it may be kept, what each choice weighs and how far it strays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.errors import RecipeError
from darwinlm.families.family import Family, ModuleKind
from darwinlm.families.shapes import ModuleShape, module_parameters
from darwinlm.recipe import UnitsSettings

MOST_COUNTS = 16
"""Numbers of experts among which a mixture's levels choose: of more experts they are multiples."""


@dataclass(frozen=True)
class Level:
    """One choice for one module.

    Attributes:
        groups: KV heads whose keys and values are kept; 1 for an MLP that is there, 0 when the module is gone.
        heads: Query heads kept in each group, 0 where groups may keep different numbers; 1 for an MLP that is there.
        width: Columns of the output projection kept.
        params: Parameters of the module, norms included.
        query_heads: Query heads kept in all; 0 for an MLP.
        experts: Experts kept, each of them `width` wide; 0 where the module isn't a mixture or is gone.
    """

    groups: int
    heads: int
    width: int
    params: int
    query_heads: int = 0
    experts: int = 0

    def is_dense(self, shape: ModuleShape) -> bool:
        """Whether everything stays."""
        return self.width == shape.width and self.experts == shape.experts

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
        RecipeError: The MLP is narrower than one unit, or the attention can't be cut into such units.
    """
    if shape.experts:
        levels = [
            Level(1, 1, width, module_parameters(family, shape, 1, width, experts), experts=experts)
            for experts in _expert_counts(shape, units)
            for width in _expert_widths(shape, units)
        ]
        return _sorted(shape, [Level(0, 0, 0, 0), *levels])
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
    return _sorted(shape, levels)


def _sorted(shape: ModuleShape, levels: list[Level]) -> ModuleLevels:
    order = sorted(levels, key=lambda level: (level.params, level.groups, level.experts))
    return ModuleLevels(shape.block, shape.kind, tuple(order))


def variants(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    """What a module is factorised for, the one with all columns last: numbers of query heads per KV group.

    0 stands for any query heads at all; an MLP has the one variant 1.

    Raises:
        RecipeError: The module's KV groups are used unevenly and the units aren't query heads.
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


def _expert_counts(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    """How many experts of a mixture may stay."""
    if shape.chosen > shape.experts:
        raise RecipeError(
            f"{shape.name} has {shape.experts} experts, but its configuration sends each token to {shape.chosen}"
        )
    if units.experts == "width":
        return [shape.experts]
    if isinstance(units.levels, tuple):
        least = min((share for share in units.levels if share), default=1.0)
        if round(least * shape.experts) < shape.chosen:
            raise RecipeError(
                f"units.levels keeps {least:.4g} of the {shape.experts} experts of {shape.name}, but each token is "
                f"sent to {shape.chosen} of them: give shares of at least {shape.chosen / shape.experts:.4g}, or set "
                "units.experts=width"
            )
    step = -(-shape.experts // MOST_COUNTS)
    counts = sorted({shape.chosen, *range(step, shape.experts + 1, step), shape.experts})
    return _near([count for count in counts if count >= shape.chosen], _above_zero(units), shape.experts)


def _expert_widths(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    """How wide the experts of a mixture may be."""
    if units.experts == "whole":
        return [shape.width]
    return _near([width for _, _, width in _mlp_counts(shape, units) if width], _above_zero(units), shape.width)


def _above_zero(units: UnitsSettings) -> Sequence[float] | None:
    return None if units.shares is None else [share for share in units.shares if share]


def _near(sizes: list[int], shares: Sequence[float] | None, full: int) -> list[int]:
    """The sizes that are nearest to a share of the full one; of two as near, the larger. All without shares."""
    if shares is None:
        return sizes
    return sorted({min(sizes, key=lambda size: (abs(size - share * full), -size)) for share in shares})


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
    chosen = _near(sorted({level.width for level in levels}), shares, full)
    return [level for level in levels if level.width in chosen]
