"""Levels of a module: allowed sizes, their parameters, and the kept part at a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.model.families.family import Family
from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.families.shapes import ModuleShape, module_parameters
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import RecipeError

MOST_COUNTS = 16
"""Maximum number of expert counts among a mixture's levels; with more experts, counts are multiples."""


@dataclass(frozen=True)
class Level:
    """One level of a module.

    Attributes:
        groups: Number of kept KV heads of an attention, else 1; 0 if the module is removed.
        heads: Number of kept query heads in each group, 0 if groups may differ; 1 without heads.
        width: Number of kept columns of the output projection.
        params: Parameters of the module, norms included.
        query_heads: Total number of kept query heads; 0 without heads.
        experts: Number of kept experts, each of width `width`; 0 if the module isn't a mixture or is removed.
    """

    groups: int
    heads: int
    width: int
    params: int
    query_heads: int = 0
    experts: int = 0

    @property
    def own_groups(self) -> int:
        """KV heads in a cache or a GGUF file: groups that may differ have one for each query head."""
        return self.groups if self.heads else self.query_heads

    def is_dense(self, shape: ModuleShape) -> bool:
        """Whether this is the dense level."""
        return self.width == shape.width and self.experts == shape.experts


@dataclass(frozen=True)
class ModuleLevels:
    """A module and its levels by ascending size: removed to dense, or only dense for a module that is never cut."""

    block: int
    kind: ModuleKind
    levels: tuple[Level, ...]

    @property
    def name(self) -> str:
        """Name for messages: `block 3 mlp`."""
        return f"block {self.block} {self.kind}"


def module_levels(family: Family, shape: ModuleShape, units: UnitsSettings) -> ModuleLevels:
    """All levels that the units allow.

    Raises:
        RecipeError: The MLP is narrower than one unit, or the attention can't be cut into such units.
    """
    if shape.experts:
        widths = [shape.width]
        if units.experts != "whole":
            widths = [width for _, _, width in _mlp_counts(shape, units) if width]
            widths = _near(widths, _above_zero(units), shape.width)
        levels = [
            Level(1, 1, width, module_parameters(family, shape, 1, width, experts), experts=experts)
            for experts in _expert_counts(shape, units)
            for width in widths
        ]
        return _sorted(shape, [Level(0, 0, 0, 0), *levels])
    if shape.kind == "mlp":
        counts = _mlp_counts(shape, units)
    elif shape.fixed:
        counts = [(shape.groups, shape.heads, shape.width)]
    else:
        counts = _attention_counts(shape, units)
        counts = [count for count in counts if count[2] % units.group == 0 or count[2] == shape.width]
        if family.attention.cut == "whole":
            counts = [(groups, heads, width) for groups, heads, width in counts if width in (0, shape.width)]
    levels = []
    for groups, heads, width in counts:
        query_heads = width // shape.head_dim if shape.kind == "attention" else 0
        levels.append(Level(groups, heads, width, module_parameters(family, shape, groups, width), query_heads))
    if units.shares is not None:
        chosen = _near(sorted({level.width for level in levels}), units.shares, shape.width)
        levels = [level for level in levels if level.width in chosen]
    return _sorted(shape, levels)


def _sorted(shape: ModuleShape, levels: list[Level]) -> ModuleLevels:
    order = sorted(levels, key=lambda level: (level.params, level.groups, level.experts))
    return ModuleLevels(shape.block, shape.kind, tuple(order))


def variants(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    """Variants of a module that are factorised: numbers of query heads per KV group; the last one has every column.

    0 stands for any query heads; other modules only have the variant 1. Raises RecipeError if the module's KV groups
    are used unevenly and the units aren't query heads.
    """
    if shape.kind != "attention":
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
    """(1, 1, width) of every level; zeros for the removed module."""
    if units.mlp_step > shape.width:
        what = f"units.mlp_multiple is {units.mlp_multiple}"
        if units.quantisation is not None:
            what = f"with units.quantisation={units.quantisation} MLP widths are multiples of {units.mlp_step}"
        raise RecipeError(f"{what}, but {shape.name} has only {shape.width} channels")
    widths = sorted({*range(0, shape.width + 1, units.mlp_step), shape.width})
    return [(min(width, 1), min(width, 1), width) for width in widths]


def _expert_counts(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    if shape.chosen > shape.experts:
        raise RecipeError(
            f"{shape.name} has {shape.experts} experts, but its configuration sends each token to {shape.chosen}"
        )
    if units.experts == "whole" and not shape.droppable:
        raise RecipeError(
            f"units.experts is whole, but the router of {shape.name} chooses among groups of experts, or by scores "
            "that don't sum to one, so that no expert can be dropped: set units.experts=width"
        )
    if units.experts == "width" or not shape.droppable:
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


def _above_zero(units: UnitsSettings) -> Sequence[float] | None:
    return None if units.shares is None else [share for share in units.shares if share]


def _near(sizes: list[int], shares: Sequence[float] | None, full: int) -> list[int]:
    """The sizes nearest to the given shares of the full one, the larger on ties; all sizes without shares."""
    if shares is None:
        return sizes
    return sorted({min(sizes, key=lambda size: (abs(size - share * full), -size)) for share in shares})


def _attention_counts(shape: ModuleShape, units: UnitsSettings) -> list[tuple[int, int, int]]:
    """(KV groups, query heads per group, width) of every level."""
    counts = [(0, 0, 0)]
    for heads in variants(shape, units):
        if heads:
            counts += [(g, heads, g * heads * shape.head_dim) for g in range(1, shape.groups + 1)]
        else:
            counts += [(shape.groups, 0, width) for width in range(shape.head_dim, shape.width, shape.head_dim)]
            counts.append((shape.groups, shape.heads, shape.width))
    return counts


@dataclass(frozen=True)
class Kept:
    """The kept part of a module at one level.

    Attributes:
        columns: [k] int64, kept columns of the output projection, ascending; [e, k] for the kept experts of a mixture.
        weight: [r, k] float32 (or [e, r, k]), the output projection's weights on them; None if nothing is removed.
        groups: [g] int64, kept KV heads of an attention, ascending.
        query_groups: For each kept query head its index in `groups`, if KV heads are used unevenly; else None.
        experts: [e] int64, kept experts of a mixture, ascending.
    """

    columns: Tensor
    weight: Tensor | None
    groups: Tensor | None = None
    query_groups: tuple[int, ...] | None = None
    experts: Tensor | None = None


def kept_groups(shape: ModuleShape, level: Level, columns: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    """KV heads kept with some columns of an attention's output projection, and their assignment to query heads.

    The shape is that before the cut. The level says how many KV heads stay: those in use, or all of them. Columns are
    [k] int64, ascending.

    Returns:
        [g] int64 KV heads, ascending, and for each kept query head its index among them; None if every KV head serves
        the same number of neighbouring query heads.
    """
    heads = (columns[:: shape.head_dim] // shape.head_dim).tolist()
    owner = shape.query_groups or [head // shape.heads for head in range(shape.width // shape.head_dim)]
    used = [owner[head] for head in heads]
    groups = sorted(set(used)) if level.groups < shape.groups else list(range(shape.groups))
    assert len(groups) == level.groups, f"{shape.name} keeps {len(groups)} KV heads, not {level.groups}"
    places = tuple(groups.index(group) for group in used)
    even = len(places) % max(len(groups), 1) == 0 and list(places) == [
        place for place in range(len(groups)) for _ in range(len(places) // len(groups))
    ]
    return torch.tensor(groups, dtype=torch.int64), None if even else places
