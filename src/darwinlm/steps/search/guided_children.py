"""Children that gradients predict to be good: the method `gradient`.

A generation takes the gradient of the loss on one window of the fitness text, solves for a few children that move all
modules at once, and measures them on the next window. Windows alternate, and the slopes are averaged over them, so the
whole text contributes. Steps are short enough that slopes promise no more than the loss: those of a squared error,
which all modules cause together, promise many times as much. After three generations without improvement, steps become
shorter: the curvature is weighted more, and the level switch also proposes children.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from darwinlm.model.objective.objective import Window
from darwinlm.model.units.space import Allocation, PerLevel
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.search.prediction import INTERACTION, Curvature, Surrogate, first_order
from darwinlm.steps.search.propose import knapsack_start, level_switch, switched_children
from darwinlm.steps.search.search_amounts import SearchAmounts
from darwinlm.steps.search.search_method import Offspring
from darwinlm.steps.search.state import SearchState

STRENGTHS = (0.8, 1.15, 1.7)
"""Factors on the curvature; a generation solves for each, since none is always best (notebook, "Children that are
solved for")."""

SLOPE_PARTS = (0.3,)
"""Factors on the slopes that are added to single-module losses in the first generation."""

MEMORY = 0.5
"""Weight of the slopes of all earlier windows in the average (notebook, "The descent, step by step")."""

SHRINK = 1.4
"""Factor on the curvature and divisor of the level switch, per generation without improvement after `PATIENCE`."""

SHORTENED = 40
"""How often steps are shortened at most so that slopes promise no more than the loss."""

PATIENCE = 2
"""Generations without improvement before steps shrink and the level switch proposes children. Slopes from another
window often lead to an improvement after one or two failures (notebook, "One loop in place of descent and
evolution")."""

LONGEST = 0.25
"""Longest level switch as a share of a module's levels; it shrinks down to one level."""

EQUAL = 3
"""Children with equal layers for each of `STRENGTHS`: they differ in the size of attentions or in the number of removed
blocks, whose losses the prediction compares badly."""

PROPOSALS = 16
"""Proposed level switches for each evaluated one; most are selected by predicted loss, some at random."""


@dataclass(frozen=True)
class GuidedChildren:
    """Proposals from predicted losses around a parent.

    Attributes:
        curvature: Curvature between the levels of every module.
        gradient: First-order losses of all levels around an allocation, on a window of the fitness text.
        windows: Windows of the text, of which each generation takes the next.
    """

    problem: Problem
    settings: SearchAmounts
    curvature: Curvature
    gradient: Callable[[Allocation, Window], PerLevel]
    windows: Sequence[Window]

    def propose(self, state: SearchState) -> Offspring:
        """Children from the knapsack; also from the level switch, after failures or if the knapsack gives none."""
        parent, problem, settings, windows = state.parent, self.problem, self.settings, self.windows
        current = _relative(parent, self.gradient(parent, windows[state.done % len(windows)]))
        earlier = _relative(parent, state.slopes) if state.slopes else current
        slopes = [(MEMORY * old + (1 - MEMORY) * new).tolist() for old, new in zip(earlier, current, strict=True)]
        alone = sum(float(row[level]) for row, level in zip(self.curvature.losses, state.seen[0], strict=True))
        surrogate = Surrogate(
            self.curvature,
            slopes,
            state.observations,
            curvature_weight=INTERACTION * state.history[0].kl / alone if alone > 0 else 1.0,
        )
        shrunk = SHRINK ** max(state.misses - PATIENCE, 0)
        shrunk *= credible_strength(parent, surrogate, problem, state.kl)
        strengths = [strength * shrunk for strength in STRENGTHS]
        parts = () if state.done else SLOPE_PARTS
        seen = set(state.seen)
        solved = solved_children(parent, surrogate, problem, strengths=strengths, slope_parts=parts)
        children = [child for child in solved if child not in seen][: settings.offspring]
        if state.misses > PATIENCE or not children:
            seen.update(children)
            wanted = max(settings.offspring - len(children), 0)
            if problem.equal is None:
                switch = partial(level_switch, parent, problem.cost.costs, problem.budget, step=LONGEST / shrunk)
                switched = switched_children(state, settings.seed, wanted * PROPOSALS, switch)
            else:
                switched = problem.equal.neighbours(parent)
                random.Random(f"{settings.seed}:{state.done}").shuffle(switched)  # noqa: S311
            proposals = [child for child in switched if child not in seen]
            at_random, others = proposals[: wanted // 4], proposals[wanted // 4 :]
            promising = sorted(others, key=lambda child: (surrogate.change(parent, child), child))
            children += [*at_random, *promising][:wanted]
        return Offspring(children, slopes, windows[(state.done + 1) % len(windows)])


def credible_strength(parent: Allocation, surrogate: Surrogate, problem: Problem, loss: float) -> float:
    """Least factor on the curvature, a power of `SHRINK`, at which slopes promise no more than the parent's loss.

    No child can gain more than the loss, so children that promise it lie farther away than slopes can tell. Equal
    layers have no short steps, so their factor is 1.
    """
    factor = 1.0
    for _ in range(SHORTENED if problem.equal is None else 0):
        children = solved_children(parent, surrogate, problem, strengths=[STRENGTHS[0] * factor])
        if all(first_order(surrogate.slopes, parent, child) >= -loss for child in children):
            break
        factor *= SHRINK
    return factor


def solved_children(
    parent: Allocation,
    surrogate: Surrogate,
    problem: Problem,
    *,
    strengths: Sequence[float],
    slope_parts: Sequence[float] = (),
) -> list[Allocation]:
    """Children from knapsacks over predicted losses, which move all modules at once; distinct, without the parent.

    `strengths` are factors on the curvature: 1 for the fitted curvature, larger ones for shorter steps. `slope_parts`
    are factors on the slopes that are added to single-module losses. They allow longer steps around the first parent;
    later, single-module losses would only pull the search back.
    """
    losses = [surrogate.losses(parent, strength) for strength in strengths]
    rows = list(zip(surrogate.curvature.losses, map(np.asarray, surrogate.slopes), strict=True))
    losses += [[loss + part * slope for loss, slope in rows] for part in slope_parts]
    children: list[Allocation] = []
    for rows_of_levels in losses:
        predicted = [row.tolist() for row in rows_of_levels]
        with contextlib.suppress(BudgetError):  # no solution: the parent was built in another way
            children += (
                [knapsack_start(problem, predicted)] if problem.equal is None else problem.equal.best(predicted)[:EQUAL]
            )
    return [child for child in dict.fromkeys(children) if child != parent]


def _relative(parent: Allocation, slopes: PerLevel) -> list[np.ndarray]:
    """Slopes relative to the parent's level, since only differences are meaningful."""
    rows = [np.asarray(row, dtype=np.float64) for row in slopes]
    return [row - row[level] for row, level in zip(rows, parent, strict=True)]
