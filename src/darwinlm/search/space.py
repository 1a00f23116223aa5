"""The space of allocations: one level for every module, what it costs, and the budget it must keep.

An allocation is a tuple of level indices in the order of the modules; 0 is gone, the last index is dense. A module that
is never cut has one level, the dense one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.database.levels import Level, ModuleLevels
from darwinlm.errors import BudgetError

Allocation = tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """Modules with their levels and costs.

    Attributes:
        modules: in the order of the allocation.
    """

    modules: tuple[ModuleLevels, ...]

    @property
    def dense(self) -> Allocation:
        """Every module at its last level."""
        return tuple(len(module.levels) - 1 for module in self.modules)

    def levels(self, allocation: Sequence[int]) -> list[Level]:
        """The chosen level of each module."""
        return [module.levels[index] for module, index in zip(self.modules, allocation, strict=True)]

    def params(self, allocation: Sequence[int]) -> int:
        """Block parameters of an allocation."""
        return sum(level.params for level in self.levels(allocation))


@dataclass(frozen=True)
class ParamBudget:
    """At most `upper` block parameters, and not fewer than `lower`.

    Attributes:
        lower: least that counts as having used the budget.
        upper: most that may stay.
    """

    lower: int
    upper: int

    def allows(self, params: int) -> bool:
        """True when the parameters lie within the bounds."""
        return self.lower <= params <= self.upper


def budget_of(space: SearchSpace, keep: float, tolerance: float) -> ParamBudget:
    """Bounds on the block parameters.

    Args:
        space: levels and costs.
        keep: share of the dense block parameters that may stay.
        tolerance: share of the budget that may stay unused.

    Raises:
        BudgetError: fewer parameters than the smallest level above nothing.
    """
    if not space.modules:
        raise BudgetError("the model has no attention and no MLP that could be pruned")
    dense = space.params(space.dense)
    upper = int(keep * dense)
    # What is never cut is there in every model; where there is no such thing, something must be kept all the same.
    smallest = sum(module.levels[0].params for module in space.modules) or min(
        level.params for module in space.modules for level in module.levels if level.params
    )
    if upper < smallest:
        raise BudgetError(
            f"keeping {keep:.4%} means {upper:,} of {dense:,} block parameters, less than the smallest model that the "
            f"units allow: {smallest:,} ({smallest / dense:.4%}); the largest is 100 %"
        )
    return ParamBudget(int(upper * (1 - tolerance)), upper)
