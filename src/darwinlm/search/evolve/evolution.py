"""The evolutionary search: mutate the parent, select in rounds on growing text, keep the best (DarwinLM §3.2).

An anytime algorithm: after every generation its state is written, a killed run goes on from there, and a wall-clock
bound ends it with the best allocation so far. Randomness is drawn per generation, so that a resumed run makes the
same candidates as an uninterrupted one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from darwinlm import parallel
from darwinlm.errors import BudgetError, NumericsError
from darwinlm.recipe import SearchSettings
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evolve.state import EvolutionState, FirstParent, Generation
from darwinlm.search.predict.curvature import Curvature
from darwinlm.search.predict.surrogate import INTERACTION, Surrogate, sloped
from darwinlm.search.problem.cost import Budget, CostModel
from darwinlm.search.problem.space import Allocation, Curves
from darwinlm.search.propose.level_switch import joined, level_switch, paper_switch
from darwinlm.search.propose.solve import guided

PROPOSALS = 16
"""Children proposed for each one that is evaluated, when proposals are screened."""

CAUTIONS = (0.85, 1.0, 1.15, 1.4, 1.8)
"""Strengths of the curvature that children are solved for."""

SHARES = (0.15, 0.3, 0.45)
"""Shares of the slopes that are added to the curves around the first parent."""

GRADIENT_PASSES = 4
"""Evaluations on the same tokens that a gradient takes as long as."""

BEST_KEPT = 64
"""Best distinct allocations that the state remembers, for the finalists."""


class Trainer(Protocol):
    """Trains physically small candidates before they are judged."""

    def train(self, candidates: Sequence[Allocation], n_tokens: int) -> None:
        """Train all of them on the same next tokens; those seen before go on from their trained state."""

    def kls(self, candidates: Sequence[Allocation], n_tokens: int) -> list[float]:
        """Mean KL of each on fitness text, as trained so far."""

    def keep(self, candidates: Sequence[Allocation]) -> None:
        """Forget all others; with none, the training text begins anew."""


@dataclass(frozen=True)
class LossModel:
    """What a search is about.

    Attributes:
        cost: of every level.
        budget: bounds.
        kinds: of each module, for switches between equals.
        curves: of each module over its levels, for screening proposals; None evaluates every proposal.
        slopes: gives first-order losses of all levels around an allocation; some children are then solved for.
        curvature: of the modules, where there are slopes.
    """

    cost: CostModel
    budget: Budget
    kinds: Sequence[str]
    curves: Curves | None = None
    slopes: Callable[[Allocation], Curves] | None = None
    curvature: Curvature | None = None

    def sloped(self, parent: Allocation, child: Allocation) -> float:
        """Change of the loss to first order, 0 where there are no slopes."""
        return sloped(self.slopes(parent), parent, child) if self.slopes else 0.0


def evolve(
    fitness: Fitness,
    problem: LossModel,
    settings: SearchSettings,
    start: Callable[[], FirstParent],
    state_file: Path,
    *,
    trainer: Trainer | None = None,
    used: float = 0.0,
    report: Callable[[EvolutionState], None] = lambda state: None,
) -> EvolutionState:
    """Run or resume the search.

    Args:
        fitness: evaluates candidates.
        problem: costs, budget and curves.
        settings: the recipe's section.
        start: makes the first parent; not called when a state is resumed.
        state_file: written after every generation, by the first process.
        trainer: trains candidates, where a stage asks for it.
        used: seconds that went into the search before.
        report: called with the state before the first generation, and after every one.

    Returns:
        The final state; `parent` is the answer.

    Raises:
        ArtifactError: the state is damaged or another model's.
        NumericsError: the first parent's logits aren't finite.
    """
    begun = time.monotonic()
    state = _begin(fitness, problem, settings, start, state_file)
    used_before = state.seconds or used
    longest = parallel.broadcast(_expected_seconds(fitness, settings)) if settings.minutes is not None else 0.0
    report(state)
    while not state.ended:
        state.seconds = parallel.broadcast(used_before + time.monotonic() - begun)
        if state.done >= settings.generations:
            state.ended = "all generations done"
        elif settings.minutes is not None and state.seconds + longest >= 60 * settings.minutes:
            state.ended = f"time is up ({settings.minutes:g} minutes)"
        else:
            _one_generation(state, fitness, problem, settings, trainer)
            now = parallel.broadcast(used_before + time.monotonic() - begun)
            # A generation that wouldn't be done in time isn't begun: the bound is kept, not passed.
            longest = max(longest, now - state.seconds)
            state.seconds = state.history[-1].seconds = now
            report(state)
        if parallel.is_main():
            state.save(state_file)
    return state


def _begin(
    fitness: Fitness, problem: LossModel, settings: SearchSettings, start: Callable[[], FirstParent], state_file: Path
) -> EvolutionState:
    final_tokens = settings.stages[-1].tokens
    with parallel.agree():
        found = EvolutionState.load(state_file, problem.cost.costs) if state_file.exists() else None
    if found is not None:
        state = found
        fitness.evaluations = state.history[-1].evaluations
        fitness.remember(state.parent, state.parent_losses)
        return state
    begun = time.monotonic()
    first = start()
    fitness.set_base(None)
    kl = fitness.kl(first.allocation, final_tokens)
    best = [(kl, first.allocation), *_more_finalists(first, fitness, settings)]
    kl, parent = min(best, key=lambda pair: pair[0])
    state = EvolutionState(
        parent,
        kl,
        fitness.losses(parent),
        seen=[*dict.fromkeys([parent, *first.tried])],
        best=sorted(best),
        observations=list(first.observations),
    )
    spent = time.monotonic() - begun
    state.history.append(Generation(0, kl, improved=False, evaluations=fitness.evaluations, seconds=spent))
    if parallel.is_main():
        state.save(state_file)
    return state


def _more_finalists(first: FirstParent, fitness: Fitness, settings: SearchSettings) -> list[tuple[float, Allocation]]:
    """Others for the final selection, which mustn't be without a choice where time ends before a generation."""
    others = first.others[: max(settings.finalists - 1, 0)]
    evaluations = fitness.evaluations
    losses = fitness.kls(others, settings.stages[-1].tokens)
    # An interrupted search measures again what another one knows.
    fitness.evaluations = evaluations + len(others)
    return [(loss, each) for loss, each in zip(losses, others, strict=True) if math.isfinite(loss)]


def _expected_seconds(fitness: Fitness, settings: SearchSettings) -> float:
    """What a generation without training should take, at the speed of the evaluations so far."""
    candidates, before, tokens = settings.offspring + settings.recombine, 0, 0
    for stage in settings.stages:
        tokens += candidates * max(stage.tokens - before, 0)
        candidates, before = stage.survivors, stage.tokens
    if settings.uses_slopes:
        tokens += GRADIENT_PASSES * settings.slope_tokens
    return tokens * fitness.seconds_per_token


def _one_generation(
    state: EvolutionState, fitness: Fitness, problem: LossModel, settings: SearchSettings, trainer: Trainer | None
) -> None:
    progress = state.done / settings.generations
    if settings.minutes is not None:
        progress = max(progress, state.seconds / (60 * settings.minutes))
    candidates = _offspring(state, problem, settings, step=settings.step * (1 - progress))
    if not candidates:
        state.ended = "every neighbour of the best allocation has been tried"
        return
    parent = state.parent
    state.seen.extend(candidates)
    if any(stage.training_tokens for stage in settings.stages):
        assert trainer is not None
        best_kl, best = _trained_rounds(parent, candidates, settings, trainer)
    else:
        best_kl, best = _rounds(state, candidates, fitness, problem, settings)
    state.done += 1
    state.parent, state.kl, state.parent_losses = best, best_kl, fitness.losses(best)
    state.history.append(Generation(state.done, best_kl, best != parent, fitness.evaluations, state.seconds))


def _rounds(
    state: EvolutionState, candidates: list[Allocation], fitness: Fitness, problem: LossModel, settings: SearchSettings
) -> tuple[float, Allocation]:
    """Selection without training: the best of the candidates and the parent, with its loss."""
    parent = state.parent
    fitness.set_base(parent)
    last = len(settings.stages) - 1
    ranked: list[tuple[float, Allocation]] = []
    for number, stage in enumerate(settings.stages):
        pool = [*candidates, parent] if number in (0, last) else candidates
        losses = dict(zip(pool, fitness.kls(pool, stage.tokens), strict=True))
        if number == 0:
            together = _together(state, losses, problem, settings)
            candidates = [*candidates, *together]
            losses |= zip(together, fitness.kls(together, stage.tokens), strict=True)
        losses = {candidate: loss for candidate, loss in losses.items() if math.isfinite(loss)}
        if parent in pool and parent not in losses:
            raise NumericsError("the best allocation's values aren't finite: try compute.dtype=float32")
        if number == 0:
            state.observations += [
                (parent, child, losses[child] - losses[parent], problem.sloped(parent, child))
                for child in candidates
                if child in losses
            ]
        if number != last:
            losses.pop(parent, None)
        ranked = sorted((loss, candidate) for candidate, loss in losses.items())
        candidates = [candidate for _, candidate in ranked[: stage.survivors]]
    distinct = {candidate: loss for loss, candidate in [*state.best, *ranked]}
    state.best = sorted((loss, candidate) for candidate, loss in distinct.items())[:BEST_KEPT]
    return ranked[0]


def _together(
    state: EvolutionState, losses: dict[Allocation, float], problem: LossModel, settings: SearchSettings
) -> list[Allocation]:
    """New candidates that join the switches by which the first stage saw children improve on their parent."""
    better = sorted((loss, child) for child, loss in losses.items() if loss < losses[state.parent])
    children = [child for _, child in better]
    found = joined(state.parent, children, problem.cost.costs, problem.budget, settings.recombine)
    new = [child for child in found if child not in set(state.seen)]
    state.seen.extend(new)
    return new


def _trained_rounds(
    parent: Allocation, candidates: list[Allocation], settings: SearchSettings, trainer: Trainer
) -> tuple[float, Allocation]:
    """Selection with training inside the generation: the parent learns from the same text as its children."""
    trainer.keep(())
    ranked: list[tuple[float, Allocation]] = []
    for stage in settings.stages:
        pool = [*candidates, parent]
        trainer.train(pool, stage.training_tokens)
        losses = zip(trainer.kls(pool, stage.tokens), pool, strict=True)
        ranked = sorted(pair for pair in losses if math.isfinite(pair[0]))
        if not ranked:
            raise NumericsError(
                "no candidate's values are finite after training: lower search.training.learning_rate or try "
                "compute.dtype=float32"
            )
        candidates = [candidate for _, candidate in ranked if candidate != parent][: stage.survivors]
        trainer.keep([*candidates, parent])
    trainer.keep(())
    return ranked[0]


def _offspring(state: EvolutionState, problem: LossModel, settings: SearchSettings, *, step: float) -> list[Allocation]:
    """New children of the parent: a quarter random, up to half solved for, the others the most promising of many."""
    rng = random.Random(f"{settings.seed}:{state.done}")  # noqa: S311
    seen = set(state.seen)
    costs, budget, curves = problem.cost.costs, problem.budget, problem.curves
    proposals: list[Allocation] = []
    wanted = settings.offspring if curves is None else settings.offspring * PROPOSALS
    try:
        for _ in range(wanted):
            if settings.trade == "same_kind":
                child = paper_switch(state.parent, costs, problem.kinds, budget, rng, seen=seen)
            else:
                child = level_switch(state.parent, costs, budget, rng, step=step, seen=seen)
            seen.add(child)
            proposals.append(child)
    except BudgetError:
        pass  # The neighbourhood is exhausted: what was found is what there is.
    if curves is None or len(proposals) <= settings.offspring:
        return proposals[: settings.offspring]
    slopes = problem.slopes(state.parent) if problem.slopes else None
    # What the modules lose alone, or their errors, may be in another unit than what they lose together.
    alone = sum(curve[level] for curve, level in zip(curves, state.seen[0], strict=True))
    worth = INTERACTION * state.history[0].kl / alone if alone > 0 else 1.0
    surrogate = Surrogate(curves, state.observations, curvature=problem.curvature, slopes=slopes, worth=worth)
    n_random = settings.offspring // 4
    chosen = proposals[:n_random]
    if slopes is not None:
        # A first parent that was descended to is past the curves.
        first = not state.observations
        cautions, shares = (CAUTIONS[1:-1], SHARES) if first else (CAUTIONS, ())
        solved = guided(state.parent, surrogate, problem.cost, budget, cautions=cautions, shares=shares)
        chosen += [child for child in solved if child not in {*state.seen, *chosen}][: settings.offspring // 2]
    promising = sorted(proposals[n_random:], key=lambda child: (surrogate.change(state.parent, child), child))
    chosen += [child for child in promising if child not in chosen]
    return chosen[: settings.offspring]
