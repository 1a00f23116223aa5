"""Children that are solved for: a knapsack over predicted losses moves all modules at once.

The prediction is that of `predict/surrogate.py`. It knows the curvature of each module and no interactions between
modules, so it is solved for several strengths of the curvature: the stronger the curvature, the shorter the step.

Around the first parent there is a second model, single-module losses with a part of the slopes added. It takes long
steps that the first one finds too dear; further on, the single-module losses would only pull back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from darwinlm.errors import BudgetError
from darwinlm.search.predict.surrogate import Surrogate
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation


def solved_children(
    parent: Allocation,
    surrogate: Surrogate,
    problem: Problem,
    *,
    strengths: Sequence[float],
    slope_parts: Sequence[float] = (),
) -> list[Allocation]:
    """Distinct answers of the models, the parent not among them.

    Args:
        parent: Level of each module.
        surrogate: Model of the loss around the parent.
        problem: Costs and budget.
        strengths: Factors on the curvature: 1 for what the observations speak for, larger ones for shorter steps.
        slope_parts: Factors on the slopes that are added to single-module losses, for the first parent alone.
    """
    losses = [surrogate.losses(parent, strength) for strength in strengths]
    rows = list(zip(surrogate.curvature.losses, map(np.asarray, surrogate.slopes), strict=True))
    losses += [[loss + part * slope for loss, slope in rows] for part in slope_parts]
    children = (_solved(each, problem) for each in losses)
    return [child for child in dict.fromkeys(children) if child is not None and child != parent]


def _solved(losses: Sequence[np.ndarray], problem: Problem) -> Allocation | None:
    budget, rows = problem.budget, [row.tolist() for row in losses]
    try:
        return solve_knapsack(rows, problem.cost.costs, budget.lower, budget.upper, words=budget.words)
    except BudgetError:  # no choice of levels: the parent itself was made otherwise
        return None
