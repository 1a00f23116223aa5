"""The multiple-choice knapsack: one level for each module, least total loss, within the budget.

Solved by HiGHS through scipy; Puzzle (arXiv 2411.19146) chooses its blocks in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, vstack

from darwinlm.errors import BudgetError


def solve_knapsack(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], lower: int, upper: int, *, seconds: float = 30
) -> tuple[int, ...]:
    """Choose a level for each module.

    Args:
        losses: of each level of each module.
        costs: of each level of each module, the same shape.
        lower: least total cost.
        upper: most total cost.
        seconds: when the proof of optimality takes longer, the best choice found by then is returned.

    Returns:
        The index of the chosen level of each module.

    Raises:
        BudgetError: no choice lies within the bounds.
    """
    sizes = [len(row) for row in losses]
    loss = np.concatenate([np.asarray(row, dtype=np.float64) for row in losses])
    cost = np.concatenate([np.asarray(row, dtype=np.float64) for row in costs])
    owner = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(loss))
    one_each = csr_matrix((np.ones(len(loss)), (owner, places)), shape=(len(sizes), len(loss)))
    scale = max(float(upper), 1.0)
    rows = vstack([one_each, csr_matrix(cost[None] / scale)])
    low = np.append(np.ones(len(sizes)), lower / scale)
    high = np.append(np.ones(len(sizes)), upper / scale)
    result = milp(
        c=loss,
        constraints=LinearConstraint(rows, low, high),
        integrality=np.ones(len(loss), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": 1e-4},
    )
    if result.x is None:
        raise BudgetError(
            f"no choice of levels has between {lower:,} and {upper:,} block parameters: raise budget.tolerance or "
            "choose smaller units"
        )
    chosen = np.split(result.x, np.cumsum(sizes)[:-1])
    return tuple(int(part.argmax()) for part in chosen)
