"""The cost of an allocation, in the unit of the budget.

A cost is an integer: parameters, bytes or nanoseconds. It is the sum of one number for each module's level and a fixed
part for everything that isn't pruned. So knapsack, mutation and evolution work with any budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from darwinlm.model.units.space import SearchSpace
from darwinlm.runtime import amounts

Costs = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CostModel:
    """Cost of each level of each module; a module with one level is never cut. `fixed` is that of everything else.

    Units are block parameters, parameters, bytes, nanoseconds, or another word for what is counted.
    """

    unit: str
    costs: Costs
    fixed: int = 0

    def of(self, allocation: Sequence[int]) -> int:
        """Cost of the whole model."""
        return self.fixed + sum(row[level] for row, level in zip(self.costs, allocation, strict=True))

    @property
    def dense(self) -> int:
        """Cost of the dense model."""
        return self.fixed + sum(row[-1] for row in self.costs)

    @property
    def smallest(self) -> int:
        """Cost of the smallest model with at least one module."""
        least = self.fixed + sum(min(row) for row in self.costs)
        if any(len(row) == 1 for row in self.costs):
            return least
        return least + min(min(row[1:]) - row[0] for row in self.costs)

    @property
    def finest_step(self) -> int:
        """Smallest value over modules of the largest cost difference between neighbouring levels; 0 if none is cut."""
        rows = [sorted(set(row)) for row in self.costs]
        return min((max(b - a for a, b in pairwise(row)) for row in rows if len(row) > 1), default=0)

    def words(self, amount: int) -> str:
        """An amount for messages: `1,234 parameters`, `1.5 GB`, `30.1 ms`."""
        return amounts.amount(amount, self.unit)


def parameter_costs(space: SearchSpace, *, fixed: int | None = None) -> CostModel:
    """Parameters of the blocks, or of the whole model if those outside the blocks are given as `fixed`."""
    costs = tuple(tuple(level.params for level in module.levels) for module in space.modules)
    return CostModel("block parameters" if fixed is None else "parameters", costs, fixed or 0)
