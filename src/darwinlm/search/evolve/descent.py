"""Descent: the way down from the first allocation by cheap steps, each of one gradient and a few knapsacks.

A step takes the gradient of the loss on one window of the fitness text, solves for a few children (`guided.py`), and
measures them and their parent on the next window, which the gradient didn't see; the best of them are measured on all
of the text, and one goes on if it beats the parent there. Windows take turns, and the slopes of earlier ones fade, so
that in the end all of the text has spoken. A step moves all modules at once and costs a fraction of a generation of
the evolution, which then goes on from here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from darwinlm import parallel
from darwinlm.artifact import damaged, read_json, write_json
from darwinlm.errors import NumericsError
from darwinlm.search.evaluate.fitness import Fitness, Window
from darwinlm.search.predict.curvature import Curvature
from darwinlm.search.predict.surrogate import INTERACTION, Observation, Surrogate, sloped
from darwinlm.search.problem.cost import Budget, CostModel
from darwinlm.search.problem.space import Allocation, Curves
from darwinlm.search.propose.solve import guided

CAUTIONS = (0.8, 1.15, 1.7)
"""Strengths of the curvature that a step is solved for."""

SHARES = (0.3,)
"""Shares of the slopes that are added to the curves in the first step."""

MEMORY = 0.5
"""What the slopes of all earlier windows weigh beside those of the present one."""

CONFIRMED = 2
"""Children of a step that are measured on all of the text: the best on the window. Of the first step, all are."""

PATIENCE = 3
"""Steps in a row that find nothing better before the descent ends."""

Gradient = Callable[[Allocation, Window], Curves]


@dataclass
class Step:
    """One step.

    Attributes:
        moved: modules whose level changed, 0 where nothing was better.
        change: of KL on all of the text.
        predicted: the same by the model that was solved.
        evaluations: candidates evaluated so far.
        seconds: of wall-clock so far.
        kl: of the allocation after it, on all of the text; None where an earlier version took the step.
    """

    moved: int
    change: float
    predicted: float
    evaluations: int
    seconds: float
    kl: float | None = None


@dataclass
class Descent:
    """How far it got; everything that a resumed descent needs.

    Attributes:
        parent: the best allocation so far.
        slopes: around it, from all windows so far.
        worth: what curvature weigh before anything was seen.
        steps: taken.
        tried: every child.
        observations: changes of the loss on single windows.
        ended: why it is over, empty while it isn't.
        start_kl: loss of the start on all of the text, once it is over.
    """

    parent: Allocation
    slopes: list[list[float]] = field(default_factory=list)
    worth: float = 0.0
    steps: list[Step] = field(default_factory=list)
    tried: list[Allocation] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    ended: str = ""
    start_kl: float | None = None

    def runners_up(self) -> list[Allocation]:
        """What was passed or left beside the way, the least loss first, as far as single windows tell."""
        losses: dict[Allocation, float] = {}
        for parent, child, change, _ in self.observations:
            losses[child] = losses.setdefault(parent, 0.0) + change
        return sorted((each for each in losses if each != self.parent), key=losses.__getitem__)

    @classmethod
    def load(cls, path: Path, costs: Sequence[Sequence[int]]) -> Descent:
        """Read what was saved. Raises ArtifactError when it can't be read, or is another search's."""
        tree: Any = read_json(path)
        try:
            tree["parent"] = tuple(tree["parent"])
            tree["tried"] = [tuple(each) for each in tree["tried"]]
            found = tree["observations"]
            tree["observations"] = [(tuple(a), tuple(b), float(change), float(by)) for a, b, change, by in found]
            tree["steps"] = [Step(**step) for step in tree["steps"]]
            tree["worth"] = float(tree["worth"])
            state = cls(**tree)
            shape = [len(row) for row in costs]
            fits = all(
                len(each) == len(shape) and all(0 <= level < top for level, top in zip(each, shape, strict=True))
                for each in (state.parent, *state.tried)
            )
            fits &= not state.slopes or [len(row) for row in state.slopes] == shape
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"it doesn't hold the steps of a search: {error}") from error
        if not fits:
            raise damaged(path, "it holds the steps of another search")
        return state


@dataclass(frozen=True)
class Slope:
    """What is descended.

    Attributes:
        cost: of every level.
        budget: bounds.
        curves: loss of every level of every module alone.
        curvature: of the modules.
        gradient: first-order losses of all levels around an allocation, on a window.
    """

    cost: CostModel
    budget: Budget
    curves: Curves
    curvature: Curvature
    gradient: Gradient


def descend(
    fitness: Fitness,
    slope: Slope,
    start: Allocation,
    state_file: Path,
    *,
    n_steps: int,
    tokens: int,
    left: Callable[[], float] = lambda: math.inf,
    report: Callable[[Descent], None] = lambda state: None,
) -> Descent:
    """Go down, or go on with an interrupted descent.

    Args:
        fitness: evaluates children.
        slope: losses, costs and gradients.
        start: the first parent.
        state_file: written after every step, by the first process.
        n_steps: most steps.
        tokens: of a window.
        left: seconds until it must be over.
        report: called with the state before the first step, and after every one.

    Raises:
        ArtifactError: the state is damaged or another search's.
        NumericsError: the parent's losses or gradients aren't finite.
    """
    begun = time.monotonic()
    with parallel.agree():
        found = Descent.load(state_file, slope.cost.costs) if state_file.exists() else None
    state = found or Descent(start)
    before = state.steps[-1].seconds if state.steps else 0.0
    windows = fitness.windows(tokens)
    latest = 0.0
    report(state)
    while not state.ended:
        now = before + parallel.broadcast(time.monotonic() - begun)
        if len(state.steps) >= n_steps:
            state.ended = "all steps taken"
        elif len(state.steps) >= PATIENCE and not any(step.moved for step in state.steps[-PATIENCE:]):
            state.ended = "nothing better found"
        elif parallel.broadcast(left()) < latest:  # the next takes no longer: the first measures the dense model too
            state.ended = "time is up"
        else:
            _step(state, fitness, slope, windows)
            then = before + parallel.broadcast(time.monotonic() - begun)
            latest = then - now
            state.steps[-1].seconds = then
            report(state)
        if parallel.is_main():
            write_json(state_file, asdict(state))
    evaluations = state.steps[-1].evaluations if state.steps else fitness.evaluations + 1
    fitness.set_base(None)
    state.start_kl = fitness.kl_on([start, state.parent], (0, fitness.n_sequences))[0]
    fitness.evaluations = evaluations
    if parallel.is_main():
        write_json(state_file, asdict(state))
    return state


def _step(state: Descent, fitness: Fitness, slope: Slope, windows: Sequence[Window]) -> None:
    number, first = len(state.steps), fitness.evaluations
    seen, judged = windows[number % len(windows)], windows[(number + 1) % len(windows)]
    parent = state.parent
    fitness.set_base(parent)
    loss = fitness.kl_on([parent], judged)[0]
    if not math.isfinite(loss):
        raise NumericsError("the allocation's values aren't finite: try compute.dtype=float32 or more damping")
    fresh = _from(parent, slope.gradient(parent, seen))
    old = _from(parent, state.slopes) if state.slopes else fresh
    state.slopes = [(MEMORY * a + (1 - MEMORY) * b).tolist() for a, b in zip(old, fresh, strict=True)]
    if not number:
        alone = sum(float(curve[level]) for curve, level in zip(slope.curves, parent, strict=True))
        state.worth = INTERACTION * loss / alone if alone > 0 else 1.0
    model = Surrogate(
        slope.curves, state.observations, curvature=slope.curvature, slopes=state.slopes, worth=state.worth
    )
    known = {parent, *state.tried}
    shares = () if number else SHARES
    children = [
        child
        for child in guided(parent, model, slope.cost, slope.budget, cautions=CAUTIONS, shares=shares)
        if child not in known
    ]
    changes = dict(zip(children, (found - loss for found in fitness.kl_on(children, judged)), strict=True))
    better = sorted((child for child in children if changes[child] < 0), key=changes.__getitem__)
    # Windows are small, and the first step moves most modules: what looks good on one may be bad on another.
    finalists = better[:CONFIRMED] if number else children
    whole = (0, fitness.n_sequences)
    before, *after = fitness.kl_on([parent, *finalists], whole)
    changes |= {child: found - before for child, found in zip(finalists, after, strict=True)}
    state.tried += children
    state.observations += [
        (parent, child, change, sloped(state.slopes, parent, child))
        for child, change in changes.items()
        if math.isfinite(change)
    ]
    best, chosen = min([(0.0, parent), *((changes[child], child) for child in finalists)], key=lambda pair: pair[0])
    moved = sum(a != b for a, b in zip(parent, chosen, strict=True))
    # Counted like this because a descent that goes on measures again what another one knows.
    evaluations = state.steps[-1].evaluations if number else first + 1
    evaluations += len(children) + len(finalists)
    state.steps.append(Step(moved, best, model.change(parent, chosen), evaluations, 0.0, before + best))
    state.parent = chosen


def _from(parent: Allocation, slopes: Curves) -> list[np.ndarray]:
    """Slopes with that of the parent's own level taken off: only differences mean something."""
    rows = [np.asarray(row, dtype=np.float64) for row in slopes]
    return [row - row[level] for row, level in zip(rows, parent, strict=True)]
