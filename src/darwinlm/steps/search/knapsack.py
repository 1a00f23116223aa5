"""The multiple-choice knapsack: one level for each module with the lowest total loss within the budget.

HiGHS solves it through scipy. Puzzle (arXiv 2411.19146) chooses its blocks in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from darwinlm.runtime.errors import BudgetError

RETRIES, SECONDS = 20, 30


def solve_knapsack(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[int]],
    lower: int,
    upper: int,
    *,
    words: str | None = None,
) -> tuple[int, ...]:
    """Choose a level for each module.

    The proof of optimality ends after `SECONDS`, with the best choice found. `words` are the bounds as messages should
    show them; None shows block parameters. Raises BudgetError if no choice lies within the bounds.
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
    sizes = [len(row) for row in losses]
    loss = np.concatenate([np.asarray(row, dtype=np.float64) for row in losses])
    cost = np.concatenate([np.asarray([price // divisor for price in row], dtype=np.float64) for row in extra])
    owner, ones = np.repeat(np.arange(len(sizes)), sizes), np.ones(len(sizes))
    one_each = csr_matrix((np.ones(len(loss)), (owner, np.arange(len(loss)))), shape=(len(sizes), len(loss)))
    constraints = [LinearConstraint(one_each, ones, ones), LinearConstraint(csr_matrix(cost[None]), low, high)]
    for _ in range(RETRIES):
        result = milp(
            c=loss,
            constraints=constraints,
            integrality=np.ones(len(loss), dtype=np.int64),
            bounds=Bounds(0, 1),
            options={"time_limit": SECONDS, "mip_rel_gap": 1e-4},
        )
        if result.x is None:
            break
        choice = tuple(int(part.argmax()) for part in np.split(result.x, np.cumsum(sizes)[:-1]))
        if lower <= sum(row[index] for row, index in zip(costs, choice, strict=True)) <= upper:
            return choice
        # It violates the bounds within the solver's tolerance, so it is forbidden.
        taken = np.zeros((1, len(loss)))
        taken[0, np.cumsum([0, *sizes[:-1]]) + np.asarray(choice)] = 1
        constraints.append(LinearConstraint(csr_matrix(taken), -np.inf, len(sizes) - 1))
    raise refusal
