"""Children that are solved for: the knapsack of a model of the loss around the parent moves all modules at once.

The model is that of `surrogate.py`. It knows each module's own curvature and not what modules do to each other's, so it
is solved for several strengths of the bends: the stronger they are taken to be, the closer a child stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from darwinlm.errors import BudgetError
from darwinlm.search.cost import Bounds, CostModel
from darwinlm.search.knapsack import solve_knapsack
from darwinlm.search.space import Allocation
from darwinlm.search.surrogate import Surrogate

CAUTIONS = (1.0, 1.4, 2.0, 2.8, 4.0)
"""Strengths of the bends."""


def guided(parent: Allocation, surrogate: Surrogate, cost: CostModel, budget: Bounds) -> list[Allocation]:
    """Distinct answers of the model, the boldest first, the parent not among them.

    Args:
        parent: level of each module.
        surrogate: the model around it, with slopes.
        cost: of every level.
        budget: bounds.
    """
    found = (_solved(surrogate.losses(parent, caution), cost, budget) for caution in CAUTIONS)
    return [child for child in dict.fromkeys(found) if child not in (None, parent)]


def _solved(losses: Sequence[np.ndarray], cost: CostModel, budget: Bounds) -> Allocation | None:
    try:
        rows = [row.tolist() for row in losses]
        return solve_knapsack(rows, cost.costs, budget.lower, budget.upper, words=budget.words)
    except BudgetError:  # no choice of levels: the parent itself was found otherwise
        return None
