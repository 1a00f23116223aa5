"""Levels of a module: how much of it may be kept, what each choice weighs and how far it strays."""

from __future__ import annotations

from dataclasses import dataclass

from darwinlm.errors import RecipeError
from darwinlm.families.family import Family, ModuleKind
from darwinlm.families.shapes import ModuleShape, module_parameters
from darwinlm.recipe import Units


@dataclass(frozen=True)
class Level:
    """One choice for one module.

    Attributes:
        groups: KV groups kept; 1 for an MLP that is there, 0 when the module is gone.
        heads: query heads kept in each group; 1 for an MLP that is there.
        width: columns of the output projection kept.
        params: parameters of the module, norms included.
    """

    groups: int
    heads: int
    width: int
    params: int


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


def module_levels(family: Family, shape: ModuleShape, units: Units) -> ModuleLevels:
    """All levels that the units allow.

    Raises:
        RecipeError: the MLP is narrower than one unit.
    """
    if shape.kind == "mlp":
        if units.mlp_multiple > shape.width:
            raise RecipeError(
                f"units.mlp_multiple is {units.mlp_multiple}, but {shape.name} has only {shape.width} channels"
            )
        widths = sorted({*range(0, shape.width + 1, units.mlp_multiple), shape.width})
        choices = [(min(width, 1), min(width, 1), width) for width in widths]
    elif family.attention.untouched:
        choices = [(shape.groups, shape.heads, shape.width)]
    else:
        heads = [shape.heads] if units.attention == "kv_group" else list(range(1, shape.heads + 1))
        choices = [(0, 0, 0)]
        choices += [(g, h, g * h * shape.head_dim) for g in range(1, shape.groups + 1) for h in heads]
    levels = [Level(g, h, w, module_parameters(family, shape, g, h, w)) for g, h, w in choices]
    return ModuleLevels(shape.block, shape.kind, tuple(sorted(levels, key=lambda level: (level.params, level.groups))))
