"""The evolutionary search: derive children from the parent, select in rounds, keep the best (DarwinLM §3.2).

One loop serves two methods. With the paper's rules, all children come from its level switch. The other method uses
gradients and isn't in the paper. A generation takes the gradient of the loss on one window of the fitness text, solves
for a few children that move all modules at once, and measures them on the next window. Windows alternate, and the
slopes are averaged over them, so the whole text contributes. After three generations without improvement, steps become
shorter: the curvature is weighted more, and the level switch also proposes children.

The state is saved after every generation, and a killed run resumes there. The search ends by itself when the last
generations gained nothing significant; a time limit ends it with the best allocation so far. Random numbers are drawn
per generation, so a resumed run creates the same candidates as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from darwinlm.model.units.space import Allocation, PerLevel
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import BudgetError, NumericsError, TimeLimitError
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.search.candidate_training import CandidateTrainer
from darwinlm.steps.search.fitness import Clock, Fitness, Window
from darwinlm.steps.search.prediction import INTERACTION, Curvature, Observation, Surrogate, first_order
from darwinlm.steps.search.propose import knapsack_start, level_switch, paper_switch
from darwinlm.steps.search.state import Generation, SearchState
from darwinlm.steps.search.step import SearchSettings

STRENGTHS = (0.8, 1.15, 1.7)
"""Factors on the curvature; a generation solves for each, since none is always best (notebook, "Children that are
solved for")."""

SLOPE_PARTS = (0.3,)
"""Factors on the slopes that are added to single-module losses in the first generation."""

MEMORY = 0.5
"""Weight of the slopes of all earlier windows in the average (notebook, "The descent, step by step")."""

SHRINK = 1.4
"""Factor on the curvature and divisor of the level switch, per generation without improvement after `PATIENCE`."""

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

LOOK_BACK = 10
"""Generations that must gain something together. In so many misses, the level switch shrinks to one level (notebook, "A
search that stops by itself, SmolLM2")."""

CERTAIN = 1.75
"""Standard errors that count as a gain: one-sided 95 % of Student's t for 16 sequences."""

SETTLED = f"the last {LOOK_BACK} gained nothing significant"
"""Reason for the end of a search that has nothing left to gain."""

OUT_OF_TIME = "time is up"
"""Reason for the end of a search at its time limit."""


@dataclass(frozen=True)
class Guide:
    """Prediction of losses around a parent.

    The gradient gives first-order losses of all levels around an allocation, on a window of the fitness text.
    """

    curvature: Curvature
    gradient: Callable[[Allocation, Window], PerLevel]


@dataclass(frozen=True)
class Offspring:
    """The children of one generation.

    Slopes are first-order losses around the parent, averaged over windows; empty without a guide. The first stage
    evaluates children on the window; None takes the beginning of the text.
    """

    children: list[Allocation]
    slopes: list[list[float]] = field(default_factory=list)
    window: Window | None = None


Selected = tuple[Allocation, float, int, list[Observation]]
"""Best allocation of a generation, its loss on the last stage's tokens, number of evaluations, and observations."""


def evolve(
    fitness: Fitness,
    problem: Problem,
    settings: SearchSettings,
    start: Callable[[], Allocation],
    state_file: Path,
    *,
    clock: Clock,
    guide: Guide | None = None,
    trainer: CandidateTrainer | None = None,
    report: Callable[[SearchState], None] = lambda state: None,
) -> SearchState:
    """Run or resume the search.

    `start` returns the first parent and is not called if a state is resumed; the time limit applies once there is one.
    The first process writes `state_file` after every generation. Without a guide, the search follows the paper's rules.
    `report` gets the state before the first generation and after every one.

    Raises:
        ArtifactError: The state is damaged or another model's.
        NumericsError: The first parent's logits aren't finite.
    """
    with parallel.agree():
        state = SearchState.load(state_file, problem.cost.costs) if state_file.exists() else None
    if state is not None:
        clock.before = state.seconds
        fitness.remember(state.parent, state.losses[-1])
    else:
        first = start()
        kl = fitness.kl(first, settings.rounds[-1].tokens)
        seconds = parallel.broadcast(clock.seconds)
        entry = Generation(0, kl, improved=False, moved=0, evaluations=fitness.evaluations, seconds=seconds)
        losses = _final_losses(fitness, first, settings)
        state = SearchState(first, kl, [losses], seen=[first], seconds=seconds, history=[entry])
        if parallel.is_main():
            state.save(state_file)
    fitness.clock = clock
    latest = 0.0
    report(state)
    while not state.ended:
        done, now = state.done, parallel.broadcast(clock.seconds)
        if done >= settings.generations:
            state.ended = "all generations done"
        elif guide is not None and trainer is None and settled(state.losses):
            state.ended = SETTLED
        elif clock.limit - now < latest:  # the next one takes about as long
            state.ended = OUT_OF_TIME
        else:
            try:
                _generation(state, fitness, problem, settings, guide, trainer)
            except TimeLimitError:
                state.ended = OUT_OF_TIME
        state.seconds = parallel.broadcast(clock.seconds)
        if state.done > done:
            latest = state.seconds - now
            state.history[-1].seconds = state.seconds
            report(state)
        if parallel.is_main():
            state.save(state_file)
    fitness.clock = Clock()
    return state


def _generation(
    state: SearchState,
    fitness: Fitness,
    problem: Problem,
    settings: SearchSettings,
    guide: Guide | None,
    trainer: CandidateTrainer | None,
) -> None:
    """Create children and select. The state changes only at the end, so a generation can be abandoned at any time."""
    offspring = (
        _by_the_paper(state, problem, settings)
        if guide is None
        else _guided(state, problem, settings, guide, fitness.windows(settings.rounds[0].tokens))
    )
    if not offspring.children:
        state.ended = "every neighbour of the best allocation has been tried"
        return
    if any(stage.training_tokens for stage in settings.rounds):
        assert trainer is not None
        best, kl, evaluations, observed = _trained_rounds(state, offspring, settings, trainer)
    else:
        best, kl, evaluations, observed = _rounds(state, offspring, fitness, settings)
    moved = sum(old != new for old, new in zip(state.parent, best, strict=True))
    state.done += 1
    state.misses = max(state.misses - 1, 0) if moved else state.misses + 1
    state.seen += offspring.children
    state.slopes = offspring.slopes
    state.observations += observed
    state.parent, state.kl = best, kl
    state.losses = [*state.losses[-LOOK_BACK:], _final_losses(fitness, best, settings)]
    evaluations += state.history[-1].evaluations
    state.history.append(Generation(state.done, kl, moved > 0, moved, evaluations, state.seconds))


def _final_losses(fitness: Fitness, allocation: Allocation, settings: SearchSettings) -> list[float]:
    """Losses on each sequence of the last round, though an earlier one may have read more."""
    return fitness.losses(allocation)[: fitness.sequences(settings.rounds[-1].tokens)]


def settled(losses: Sequence[Sequence[float]]) -> bool:
    """Whether the last `LOOK_BACK` generations gained nothing significant.

    `losses` are those of the best allocations, one list of sequences for each generation. The error of the gain is its
    standard error over the sequences, which both allocations share.
    """
    if len(losses) <= LOOK_BACK:
        return False
    gains = [old - new for old, new in zip(losses[-1 - LOOK_BACK], losses[-1], strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return statistics.fmean(gains) <= CERTAIN * error


# ------------------------------------------------------------------------------------------------------------ children


def _by_the_paper(state: SearchState, problem: Problem, settings: SearchSettings) -> Offspring:
    kinds = [module.kind for module in problem.space.modules]
    switch = partial(paper_switch, state.parent, problem.cost.costs, kinds, problem.budget)
    return Offspring(_switches(state, settings.seed, settings.offspring, switch))


def _guided(
    state: SearchState, problem: Problem, settings: SearchSettings, guide: Guide, windows: Sequence[Window]
) -> Offspring:
    """Children from the knapsack; also from the level switch, after failures or if the knapsack gives none."""
    parent = state.parent
    current = _relative(parent, guide.gradient(parent, windows[state.done % len(windows)]))
    earlier = _relative(parent, state.slopes) if state.slopes else current
    slopes = [(MEMORY * old + (1 - MEMORY) * new).tolist() for old, new in zip(earlier, current, strict=True)]
    alone = sum(float(row[level]) for row, level in zip(guide.curvature.losses, state.seen[0], strict=True))
    surrogate = Surrogate(
        guide.curvature,
        slopes,
        state.observations,
        curvature_weight=INTERACTION * state.history[0].kl / alone if alone > 0 else 1.0,
    )
    shrunk = SHRINK ** max(state.misses - PATIENCE, 0)
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
            switched = _switches(state, settings.seed, wanted * PROPOSALS, switch)
        else:
            switched = problem.equal.neighbours(parent)
            random.Random(f"{settings.seed}:{state.done}").shuffle(switched)  # noqa: S311
        proposals = [each for each in switched if each not in seen]
        at_random, others = proposals[: wanted // 4], proposals[wanted // 4 :]
        promising = sorted(others, key=lambda child: (surrogate.change(parent, child), child))
        children += [*at_random, *promising][:wanted]
    return Offspring(children, slopes, windows[(state.done + 1) % len(windows)])


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
    for each in losses:
        predicted = [row.tolist() for row in each]
        with contextlib.suppress(BudgetError):  # no solution: the parent was built in another way
            children += (
                [knapsack_start(problem, predicted)] if problem.equal is None else problem.equal.best(predicted)[:EQUAL]
            )
    return [child for child in dict.fromkeys(children) if child != parent]


def _switches(state: SearchState, seed: int, count: int, switch: Callable[..., Allocation]) -> list[Allocation]:
    """Up to `count` new allocations from a level switch, which lacks its random numbers and `seen`."""
    rng = random.Random(f"{seed}:{state.done}")  # noqa: S311
    seen = set(state.seen)
    children: list[Allocation] = []
    with contextlib.suppress(BudgetError):  # All neighbours have been tried.
        for _ in range(count):
            children.append(switch(rng, seen=seen))
            seen.add(children[-1])
    return children


def _relative(parent: Allocation, slopes: PerLevel) -> list[np.ndarray]:
    """Slopes relative to the parent's level, since only differences are meaningful."""
    rows = [np.asarray(row, dtype=np.float64) for row in slopes]
    return [row - row[level] for row, level in zip(rows, parent, strict=True)]


# ----------------------------------------------------------------------------------------------------------- selection


def _rounds(state: SearchState, offspring: Offspring, fitness: Fitness, settings: SearchSettings) -> Selected:
    """Selection without training."""
    parent, pool, guided = state.parent, offspring.children, offspring.window is not None
    changes: dict[Allocation, float] = {}
    evaluations, loss = 0, math.nan
    for number, stage in enumerate(settings.rounds):
        whole = (0, fitness.sequences(stage.tokens))
        window = offspring.window if offspring.window is not None and number == 0 else whole
        loss, *losses = fitness.kl_on([parent, *pool], window)
        if not math.isfinite(loss):
            raise NumericsError("the best allocation's values aren't finite: try compute.dtype=float32")
        evaluations += len(pool)
        judged = {child: each - loss for child, each in zip(pool, losses, strict=True) if math.isfinite(each)}
        changes |= judged
        pool = sorted(judged, key=lambda child: (judged[child], child))
        if guided and not state.done:
            continue  # The first step moves most modules and windows are small, so all children go on.
        # Children that are worse than the parent on one window are hardly ever better on the whole text.
        pool = [child for child in pool if judged[child] < 0 or not guided][: stage.survivors]
    final = settings.rounds[-1].tokens
    best = min(pool, key=lambda child: (judged[child], child), default=parent)
    best = best if best != parent and judged[best] < 0 else parent
    observations = [
        (parent, child, change, first_order(offspring.slopes, parent, child) if offspring.slopes else 0.0)
        for child, change in changes.items()
    ]
    return best, fitness.kls([best], final)[0], evaluations, observations


def _trained_rounds(
    state: SearchState, offspring: Offspring, settings: SearchSettings, trainer: CandidateTrainer
) -> Selected:
    """Selection with training; the parent is trained on the same text as its children."""
    parent, candidates, evaluations = state.parent, offspring.children, 0
    ranked: list[tuple[float, Allocation]] = []
    for stage in settings.rounds:
        pool = [parent, *candidates]
        losses = trainer.judge(pool, stage.training_tokens, stage.tokens)
        evaluations += len(pool)
        ranked = sorted(pair for pair in zip(losses, pool, strict=True) if math.isfinite(pair[0]))
        if not ranked:
            raise NumericsError("no candidate's values are finite after training: try compute.dtype=float32")
        candidates = [candidate for _, candidate in ranked if candidate != parent][: stage.survivors]
        trainer.keep([*candidates, parent])
    trainer.keep(())
    kl, best = ranked[0]
    return best, kl, evaluations, []
