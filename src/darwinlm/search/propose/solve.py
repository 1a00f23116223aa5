"""Children from a knapsack over predicted losses, which moves all modules at once.

`predict/surrogate.py` predicts the losses. It models the curvature of each module but no interactions between modules.
So the knapsack is solved for several strengths of the curvature. A stronger curvature gives a shorter step.

Around the first parent there is a second model: single-module losses plus a part of the slopes. It allows longer steps
than the first model. Later, single-module losses would only pull the search back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from darwinlm.errors import BudgetError
from darwinlm.search.predict.surrogate import Surrogate
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation
from darwinlm.search.propose.start import knapsack_start


def solved_children(
    parent: Allocation,
    surrogate: Surrogate,
    problem: Problem,
    *,
    strengths: Sequence[float],
    slope_parts: Sequence[float] = (),
) -> list[Allocation]:
    """Distinct solutions of the models, without the parent.

    `strengths` are factors on the curvature: 1 for the fitted curvature, larger ones for shorter steps. `slope_parts`
    are factors on the slopes that are added to single-module losses; only for the first parent.
    """
    losses = [surrogate.losses(parent, strength) for strength in strengths]
    rows = list(zip(surrogate.curvature.losses, map(np.asarray, surrogate.slopes), strict=True))
    losses += [[loss + part * slope for loss, slope in rows] for part in slope_parts]
    children = (_solved(each, problem) for each in losses)
    return [child for child in dict.fromkeys(children) if child is not None and child != parent]


def _solved(losses: Sequence[np.ndarray], problem: Problem) -> Allocation | None:
    try:
        return knapsack_start(problem, [row.tolist() for row in losses])
    except BudgetError:  # no solution: the parent was built in another way
        return None
