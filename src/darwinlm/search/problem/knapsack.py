"""The multiple-choice knapsack: one level for each module with the lowest total loss within the budget.

HiGHS solves it through scipy. Puzzle (arXiv 2411.19146) chooses its blocks in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from darwinlm.errors import BudgetError

RETRIES = 20


def solve_knapsack(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[int]],
    lower: int,
    upper: int,
    *,
    seconds: float = 30,
    words: str | None = None,
) -> tuple[int, ...]:
    """Choose a level for each module.

    `seconds` limits the proof of optimality; after it the best choice found is returned. `words` are the bounds as
    messages should show them; None shows block parameters. Raises BudgetError if no choice lies within the bounds.
    """
    refusal = BudgetError(
        f"no choice of levels lies between {words or f'{lower:,} and {upper:,} block parameters'}: raise "
        "budget.tolerance or choose smaller units"
    )
    # Only differences within a module matter, in units of their common divisor. Small numbers keep the solver exact,
    # and many impossible bounds are detected at once.
    base = sum(min(row) for row in costs)
    extra = [[cost - min(row) for cost in row] for row in costs]
    divisor = max(math.gcd(*(cost for row in extra for cost in row)), 1)
    low, high = -((base - lower) // divisor), (upper - base) // divisor
    if low > high or high < 0 or low > sum(max(row) for row in extra) // divisor:
        raise refusal
    problem = _Problem(losses, [[cost // divisor for cost in row] for row in extra], low, high, seconds)
    for _ in range(RETRIES):
        choice = problem.solve()
        if choice is None:
            raise refusal
        if lower <= sum(row[index] for row, index in zip(costs, choice, strict=True)) <= upper:
            return choice
        problem.forbid(choice)
    raise refusal


class _Problem:
    """The integer programme. Choices that violate the bounds within the solver's tolerance can be forbidden."""

    def __init__(
        self,
        losses: Sequence[Sequence[float]],
        costs: Sequence[Sequence[int]],
        low: int,
        high: int,
        seconds: float,
    ) -> None:
        self.sizes = [len(row) for row in losses]
        self.loss = np.concatenate([np.asarray(row, dtype=np.float64) for row in losses])
        self.seconds = seconds
        cost = np.concatenate([np.asarray(row, dtype=np.float64) for row in costs])
        owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        shape = (len(self.sizes), len(self.loss))
        one_each: Any = csr_matrix((np.ones(len(self.loss)), (owner, np.arange(len(self.loss)))), shape=shape)
        ones = np.ones(len(self.sizes))
        self.constraints = [LinearConstraint(one_each, ones, ones), LinearConstraint(csr_matrix(cost[None]), low, high)]

    def solve(self) -> tuple[int, ...] | None:
        result = milp(
            c=self.loss,
            constraints=self.constraints,
            integrality=np.ones(len(self.loss), dtype=np.int64),
            bounds=Bounds(0, 1),
            options={"time_limit": self.seconds, "mip_rel_gap": 1e-4},
        )
        if result.x is None:
            return None
        return tuple(int(part.argmax()) for part in np.split(result.x, np.cumsum(self.sizes)[:-1]))

    def forbid(self, choice: Sequence[int]) -> None:
        starts = np.cumsum([0, *self.sizes[:-1]])
        row = np.zeros((1, len(self.loss)))
        row[0, starts + np.asarray(choice)] = 1
        self.constraints.append(LinearConstraint(csr_matrix(row), -np.inf, len(self.sizes) - 1))
