"""Bounds on the cost of an allocation."""

from __future__ import annotations

from dataclasses import dataclass

from darwinlm.errors import BudgetError
from darwinlm.recipe import BudgetSettings
from darwinlm.search.problem.cost import CostModel, Unit, amount_words


@dataclass(frozen=True)
class Budget:
    """Bounds on the total cost of the modules; from the lower one on, the budget counts as used.

    `fixed` is the cost of everything that isn't pruned, not included in the bounds.
    """

    lower: int
    upper: int
    unit: Unit = "block parameters"
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
        if self.unit in ("block parameters", "parameters"):
            return f"{low:,} and {high:,} {self.unit}"
        return f"{amount_words(low, self.unit)} and {amount_words(high, self.unit)}"


def resolve_budget(cost: CostModel, budget: BudgetSettings) -> Budget:
    """Bounds from the budget of a recipe.

    An allocation may leave the recipe's tolerance unused, or one level of the finest module if that is more. In a small
    model a level can exceed the tolerance, so that no allocation would be within the bounds. Raises BudgetError if the
    budget is below the smallest or above the largest model.
    """
    if not cost.costs:
        raise BudgetError("the model has no attention and no MLP that could be pruned")
    limit, beginning = _limit(cost, budget)
    upper = limit - cost.fixed
    if limit < cost.smallest:
        raise BudgetError(
            f"{beginning}, less than the smallest model that the units allow: {_with_share(cost, cost.smallest)}; the "
            f"largest is {_with_share(cost, cost.dense)}"
        )
    if limit > cost.dense:
        raise BudgetError(
            f"{beginning}, more than the whole model: there is nothing to prune; the smallest is "
            f"{_with_share(cost, cost.smallest)}, the largest {_with_share(cost, cost.dense)}"
        )
    unused = max(limit - int(limit * (1 - budget.tolerance)), cost.finest_step)
    # At least one module must remain.
    return Budget(max(upper - unused, cost.smallest - cost.fixed), upper, cost.unit, cost.fixed)


def _limit(cost: CostModel, budget: BudgetSettings) -> tuple[int, str]:
    """Maximum cost of the whole model, and the beginning of messages about it."""
    if budget.keep is not None:
        limit = int(budget.keep * cost.dense)
        return limit, f"budget.keep: keeping {budget.keep:.4%} means {limit:,} of {cost.dense:,} block parameters"
    if budget.speedup is not None:
        limit = int(cost.dense / budget.speedup)
        return limit, f"budget.speedup: {budget.speedup:g}x means {cost.words(limit)} of {cost.words(cost.dense)}"
    if budget.latency is not None:
        limit = round(1e9 * budget.latency)
    else:
        limit = int(budget.params if budget.params is not None else budget.bytes or 0)
    return limit, f"budget.{budget.kind}: {cost.words(limit)} requested"


def _with_share(cost: CostModel, amount: int) -> str:
    if cost.unit == "block parameters":
        return f"{amount:,} ({amount / cost.dense:.4%})"
    times = f" ({cost.dense / amount:.2f}x)" if cost.unit == "nanoseconds" and amount else ""
    return cost.words(amount) + times
