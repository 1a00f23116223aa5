"""Children that are solved for: the knapsack of a model of the loss around the parent moves all modules at once.

The model is that of `surrogate.py`. It knows each module's own curvature and not what modules do to each other's, so it
is solved for several strengths of the curvature: the stronger they are taken to be, the closer a child stays.

Around the first parent there is a second model, the curves that it was solved for with some of the slopes added. It
takes long steps that the first one finds too dear; further on, the curves would only pull back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from darwinlm.errors import BudgetError
from darwinlm.search.predict.surrogate import Surrogate
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation


def guided(
    parent: Allocation,
    surrogate: Surrogate,
    problem: Problem,
    *,
    cautions: Sequence[float],
    shares: Sequence[float] = (),
) -> list[Allocation]:
    """Distinct answers of the models, the parent not among them.

    Args:
        parent: level of each module.
        surrogate: the model around it, with slopes.
        problem: Costs and budget.
        cautions: strengths of the curvature: the weight that the observations speak for, and around it.
        shares: of the slopes that are added to the curves, for the first parent alone.
    """
    assert surrogate.slopes is not None
    losses = [surrogate.losses(parent, caution) for caution in cautions]
    rows = [(curve, np.asarray(slope)) for curve, slope in zip(surrogate.curves, surrogate.slopes, strict=True)]
    losses += [[curve + share * slope for curve, slope in rows] for share in shares]
    found = (_solved(each, problem) for each in losses)
    return [child for child in dict.fromkeys(found) if child not in (None, parent)]


def _solved(losses: Sequence[np.ndarray], problem: Problem) -> Allocation | None:
    try:
        rows = [row.tolist() for row in losses]
        budget = problem.budget
        return solve_knapsack(rows, problem.cost.costs, budget.lower, budget.upper, words=budget.words)
    except BudgetError:  # no choice of levels: the parent itself was found otherwise
        return None
