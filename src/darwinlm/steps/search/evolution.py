"""The evolutionary search: derive children from the parent, select in rounds, keep the best (DarwinLM §3.2).

One loop serves all methods (`search_method.py`), which propose the children.

The state is saved after every generation, and a killed run resumes there. The search ends by itself when the last
generations gained nothing significant; a time limit ends it with the best allocation so far. Random numbers are drawn
per generation, so a resumed run creates the same candidates as an uninterrupted one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from darwinlm.model.units.space import Allocation
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import NumericsError, TimeLimitError
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.search.candidate_training import CandidateTrainer
from darwinlm.steps.search.fitness import Clock, Fitness
from darwinlm.steps.search.prediction import Observation, first_order
from darwinlm.steps.search.search_method import Offspring, Propose
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.search.state import Generation, SearchState

LOOK_BACK = 10
"""Generations that must gain something together. In so many misses, the level switch shrinks to one level (notebook, "A
search that stops by itself, SmolLM2")."""

CERTAIN = 1.75
"""Standard errors that count as a gain: one-sided 95 % of Student's t for 16 sequences."""

SETTLED = f"the last {LOOK_BACK} gained nothing significant"
"""Reason for the end of a search that has nothing left to gain."""

OUT_OF_TIME = "time is up"
"""Reason for the end of a search at its time limit."""


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
    propose: Propose,
    trainer: CandidateTrainer | None = None,
    report: Callable[[SearchState], None] = lambda state: None,
) -> SearchState:
    """Run or resume the search.

    `start` returns the first parent and is not called if a state is resumed; the time limit applies once there is one.
    The first process writes `state_file` after every generation. `propose` comes from the method of the settings.
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
        elif settings.method.settles and trainer is None and settled(state.losses):
            state.ended = SETTLED
        elif clock.limit - now < latest:  # the next one takes about as long
            state.ended = OUT_OF_TIME
        else:
            try:
                _generation(state, fitness, settings, propose, trainer)
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
    settings: SearchSettings,
    propose: Propose,
    trainer: CandidateTrainer | None,
) -> None:
    """Create children and select. The state changes only at the end, so a generation can be abandoned at any time."""
    offspring = propose(state)
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
        judged = {child: own - loss for child, own in zip(pool, losses, strict=True) if math.isfinite(own)}
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
