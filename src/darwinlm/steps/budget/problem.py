"""The search problem: the space of allocations, their cost, and the budget."""

from __future__ import annotations

from dataclasses import dataclass

from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.runtime.amounts import amount
from darwinlm.runtime.artifact import digest_of
from darwinlm.steps.budget.equal import EqualLayers


@dataclass(frozen=True)
class Budget:
    """Bounds on the total cost of the modules; from the lower one on, the budget counts as used.

    `fixed` is the cost of everything that isn't pruned, not included in the bounds.
    """

    lower: int
    upper: int
    unit: str = "block parameters"
    fixed: int = 0

    def allows(self, cost: int) -> bool:
        """True when the modules' cost lies within the bounds."""
        return self.lower <= cost <= self.upper

    @property
    def limit(self) -> int:
        """Maximum cost of the whole model."""
        return self.upper + self.fixed

    @property
    def words(self) -> str:
        """The bounds for messages, in terms of the whole model."""
        low, high = self.lower + self.fixed, self.upper + self.fixed
        if self.unit in ("bytes", "nanoseconds"):
            return f"{amount(low, self.unit)} and {amount(high, self.unit)}"
        return f"{low:,} and {high:,} {self.unit}"


@dataclass(frozen=True)
class Problem:
    """The search space, the cost of allocations in the unit of the budget, and the budget.

    `outside` is the number of parameters that aren't pruned. `equal` restricts the allocations to equal layers; None
    allows all. `only` is the allocation if there is nothing to choose: all blocks fit into the budget, or the first
    ones are asked for.
    """

    space: SearchSpace
    cost: CostModel
    budget: Budget
    outside: int = 0
    equal: EqualLayers | None = None
    only: Allocation | None = None

    @property
    def whole(self) -> bool:
        """Whether all blocks stay."""
        return self.only == self.space.dense

    @property
    def digest(self) -> str:
        """Hash of costs and budget, for a problem that is given to a run."""
        bounds = [self.budget.lower, self.budget.upper, self.equal is not None]
        return digest_of([self.cost.unit, self.cost.costs, self.cost.fixed, bounds])
