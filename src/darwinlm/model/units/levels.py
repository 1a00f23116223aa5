"""Levels of a module: allowed sizes, their parameters, and the kept part at a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from darwinlm.model.families.family import Family
from darwinlm.model.families.shapes import ModuleShape, module_parameters
from darwinlm.model.layer_sizes import LayerSizes, PlacedModule
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import RecipeError

MOST_COUNTS = 16
"""Maximum number of expert counts among a mixture's levels; with more experts, counts are multiples."""


@dataclass(frozen=True)
class Level:
    """One level of a module: its sizes, and their parameters, norms included."""

    sizes: LayerSizes
    params: int


@dataclass(frozen=True)
class ModuleLevels(PlacedModule):
    """A module and its levels by ascending size: removed to dense, or only dense for a module that is never cut."""

    levels: tuple[Level, ...]

    @property
    def removed(self) -> int:
        """Parameters that stay when the module is removed: those of a norm behind its sum with the residual stream."""
        smallest = self.levels[0]
        return 0 if smallest.sizes.width else smallest.params


def module_levels(family: Family, shape: ModuleShape, units: UnitsSettings) -> ModuleLevels:
    """All levels that the units allow.

    Raises:
        RecipeError: The MLP is narrower than one unit, or the attention can't be cut into such units.
    """
    if shape.sizes.experts:
        sizes = _mixture_sizes(shape, units)
    elif shape.kind == "mlp":
        sizes = [LayerSizes(shape.kind, width) for width in _mlp_widths(shape, units)]
        sizes = _at_shares(sizes, shape, units)
    elif shape.fixed:
        sizes = [shape.sizes]
    else:
        sizes = _attention_sizes(shape, units)
        sizes = [size for size in sizes if size.width % units.group == 0 or size.width == shape.sizes.width]
        if family.attention.cut == "whole":
            sizes = [size for size in sizes if size.width in (0, shape.sizes.width)]
        sizes = _at_shares(sizes, shape, units)
    levels = [Level(size, module_parameters(family, shape, size)) for size in sizes]
    levels.sort(key=lambda level: (level.params, level.sizes.groups, level.sizes.experts))
    return ModuleLevels(shape.block, shape.kind, tuple(levels))


def _at_shares(sizes: list[LayerSizes], shape: ModuleShape, units: UnitsSettings) -> list[LayerSizes]:
    """The sizes whose width is nearest to a share that the units allow."""
    widths = _near(sorted({size.width for size in sizes}), units.shares, shape.sizes.width)
    return [size for size in sizes if size.width in widths]


def variants(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    """Variants of a module that are factorised: numbers of query heads per KV group; the last one has every column.

    0 stands for any query heads. Modules that aren't attentions have the single variant 1. Raises RecipeError if the
    module's KV groups are used unevenly and the units aren't query heads.
    """
    if shape.kind != "attention":
        return [1]
    heads = shape.sizes.heads_per_group
    if units.attention == "query_head" and heads != 1:
        return [0]
    if shape.sizes.owners is not None:
        raise RecipeError(
            f"units.attention is {units.attention}, but the KV heads of {shape.name} are used by different numbers of "
            "query heads: only query_head can cut it further"
        )
    return list(range(1, heads + 1)) if units.attention == "lattice" else [heads]


def _mixture_sizes(shape: ModuleShape, units: UnitsSettings) -> list[LayerSizes]:
    """Sizes of a mixture, the removed one first."""
    widths = [shape.sizes.width]
    if units.experts != "whole":
        widths = _near([width for width in _mlp_widths(shape, units) if width], _above_zero(units), shape.sizes.width)
    counts = _expert_counts(shape, units)
    kept = [replace(shape.sizes, experts=experts, width=width) for experts in counts for width in widths]
    return [LayerSizes(shape.kind), *kept]


def _mlp_widths(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    """Numbers of channels, ascending from 0."""
    full = shape.sizes.width
    if units.mlp_step > full:
        setting = f"units.mlp_multiple is {units.mlp_multiple}"
        if units.quantisation is not None:
            setting = f"with units.quantisation={units.quantisation} MLP widths are multiples of {units.mlp_step}"
        raise RecipeError(f"{setting}, but {shape.name} has only {full} channels")
    return sorted({*range(0, full + 1, units.mlp_step), full})


def _expert_counts(shape: ModuleShape, units: UnitsSettings) -> list[int]:
    experts = shape.sizes.experts
    if shape.chosen > experts:
        raise RecipeError(
            f"{shape.name} has {experts} experts, but its configuration sends each token to {shape.chosen}"
        )
    if units.experts == "whole" and not shape.droppable:
        raise RecipeError(
            f"units.experts is whole, but the router of {shape.name} chooses among groups of experts, or by scores "
            "that don't sum to one, so that no expert can be dropped: set units.experts=width"
        )
    if units.experts == "width" or not shape.droppable:
        return [experts]
    if isinstance(units.levels, tuple):
        least = min((share for share in units.levels if share), default=1.0)
        if round(least * experts) < shape.chosen:
            raise RecipeError(
                f"units.levels keeps {least:.4g} of the {experts} experts of {shape.name}, but each token is "
                f"sent to {shape.chosen} of them: give shares of at least {shape.chosen / experts:.4g}, or set "
                "units.experts=width"
            )
    step = -(-experts // MOST_COUNTS)
    counts = sorted({shape.chosen, *range(step, experts + 1, step), experts})
    return _near([count for count in counts if count >= shape.chosen], _above_zero(units), experts)


def _above_zero(units: UnitsSettings) -> Sequence[float] | None:
    return None if units.shares is None else [share for share in units.shares if share]


def _near(sizes: list[int], shares: Sequence[float] | None, full: int) -> list[int]:
    """The sizes nearest to the given shares of the full one, the larger on ties; all sizes without shares."""
    if shares is None:
        return sizes
    return sorted({min(sizes, key=lambda size: (abs(size - share * full), -size)) for share in shares})


def _attention_sizes(shape: ModuleShape, units: UnitsSettings) -> list[LayerSizes]:
    """Sizes of an attention, the removed one first and the dense one last."""
    full = shape.sizes
    sizes = [LayerSizes(shape.kind)]
    for heads in variants(shape, units):
        if heads:
            counts = range(1, full.groups + 1)
            sizes += [replace(full, width=count * heads * full.head_dim, groups=count) for count in counts]
        else:
            widths = range(full.head_dim, full.width, full.head_dim)
            sizes += [replace(full, width=width, even=False, owners=None) for width in widths]
            sizes.append(full)
    return sizes


@dataclass(frozen=True)
class Kept:
    """The kept part of a module at one level.

    Attributes:
        sizes: Sizes of the level, with the owners of its query heads.
        columns: [k] int64, kept columns of the output projection, ascending; [e, k] for the kept experts of a mixture.
        weight: [r, k] float32 (or [e, r, k]), the output projection's weights on them; None if nothing is removed.
        groups: [g] int64, kept KV groups of an attention, ascending.
        experts: [e] int64, kept experts of a mixture, ascending.
    """

    sizes: LayerSizes
    columns: Tensor
    weight: Tensor | None
    groups: Tensor | None = None
    experts: Tensor | None = None


def kept_groups(shape: ModuleShape, sizes: LayerSizes, columns: Tensor) -> tuple[Tensor, LayerSizes]:
    """KV groups that stay with some columns of an attention's output projection, and the sizes with their owners.

    The shape is that before the cut. The sizes are those of a level; they say how many groups stay: those in use, or
    all of them. Columns are [k] int64, ascending.

    Returns:
        [g] int64 KV groups, ascending, and the sizes with the index among them for each kept query head, unless all
        have the same number of neighbouring query heads.
    """
    full, owners = shape.sizes, shape.sizes.owner_of_heads
    heads = (columns[:: full.head_dim] // full.head_dim).tolist()
    used = [owners[head] for head in heads]
    groups = sorted(set(used)) if sizes.groups < full.groups else list(range(full.groups))
    assert len(groups) == sizes.groups, f"{shape.name} keeps {len(groups)} KV groups, not {sizes.groups}"
    kept_owners = tuple(groups.index(group) for group in used)
    per_group, uneven = divmod(len(kept_owners), max(len(groups), 1))
    even = not uneven and list(kept_owners) == [group for group in range(len(groups)) for _ in range(per_group)]
    return torch.tensor(groups, dtype=torch.int64), replace(sizes, even=even, owners=None if even else kept_owners)


def with_owners(shape: ModuleShape, sizes: LayerSizes, columns: Tensor) -> LayerSizes:
    """The sizes of a level with the owners of its query heads, which follow from its columns; see `kept_groups`."""
    return sizes if sizes.even else kept_groups(shape, sizes, columns)[1]
