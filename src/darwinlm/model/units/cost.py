"""The cost of an allocation, in the unit of the budget.

A cost is an integer: parameters, bytes or nanoseconds. It is the sum of one number for each module's level and a fixed
part for everything that isn't pruned. So knapsack, mutation and evolution work with any budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from darwinlm.model.units.space import SearchSpace
from darwinlm.runtime import amounts
from darwinlm.runtime.artifact import digest_of

Costs = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CostModel:
    """Cost of each level of each module; a module with one level is never cut. `fixed` is that of everything else.

    Units are block parameters, parameters, bytes, nanoseconds, or another word for what is counted.

    Attributes:
        head: The part of `fixed` that is in proportion to the number of tokens in the vocabulary, if it was measured.
        saved: What tokens that were removed from the vocabulary save.
        longer: Factor by which text has more tokens without them.
        left: Modules of a block, by their places in an allocation, and the cost of what goes only with the last of them
            (`SearchSpace.left`). The sum over modules is too large by it in blocks without any.
    """

    unit: str
    costs: Costs
    fixed: int = 0
    head: int = 0
    saved: int = 0
    longer: float = 1.0
    left: tuple[tuple[tuple[int, ...], int], ...] = ()

    def with_tokens(self, share: float, longer: float) -> CostModel:
        """The costs with a share of the tokens of the vocabulary, without which text is longer by a factor."""
        saved = round((1 - share) * self.head)
        return replace(self, fixed=self.fixed - saved, head=self.head - saved, saved=saved, longer=longer)

    def of(self, allocation: Sequence[int]) -> int:
        """Cost of the whole model."""
        gone = sum(cost for places, cost in self.left if all(allocation[place] == 0 for place in places))
        return self.fixed + sum(row[level] for row, level in zip(self.costs, allocation, strict=True)) - gone

    @property
    def dense(self) -> int:
        """Cost of the dense model."""
        return self.fixed + sum(row[-1] for row in self.costs)

    @property
    def original(self) -> int:
        """Cost of the dense model with all tokens of its vocabulary, for a text of as many tokens."""
        return self.dense + self.saved

    @property
    def digest(self) -> str:
        """Hash of all costs."""
        return digest_of([self.unit, self.costs, self.fixed, self.head, self.saved, self.longer, *self.left])

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
    beside = sum(space.beside.values())
    unit = "block parameters" if fixed is None else "parameters"
    return CostModel(unit, costs, (fixed or 0) + beside, left=space.left)
