"""The evolutionary search: mutate the parent, select in rounds on growing text, keep the best (DarwinLM §3.2).

An anytime algorithm: after every generation its state is written, a killed run goes on from there, and a wall-clock
bound ends it with the best allocation so far. Randomness is drawn per generation, so that a resumed run makes the
same candidates as an uninterrupted one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from darwinlm.artifact import damaged, read_json, write_json
from darwinlm.errors import BudgetError
from darwinlm.recipe import Search
from darwinlm.search.fitness import Fitness
from darwinlm.search.mutation import level_switch
from darwinlm.search.space import Allocation, ParamBudget
from darwinlm.search.start import costs_of
from darwinlm.search.surrogate import Observation, Surrogate

PROPOSALS = 16
"""Children proposed for each one that is evaluated, when proposals are screened."""


@dataclass
class Generation:
    """One line of the history.

    Attributes:
        number: from 0, the start.
        kl: of the best allocation on the tokens of the last stage.
        improved: whether it beat its parent.
        evaluations: candidates evaluated so far.
        seconds: of wall-clock so far.
    """

    number: int
    kl: float
    improved: bool
    evaluations: int
    seconds: float


@dataclass
class EvolutionState:
    """Everything that a resumed search needs.

    Attributes:
        parent: the best allocation so far.
        kl: its loss on the tokens of the last stage.
        done: generations finished.
        seconds: wall-clock used.
        seen: every allocation that was a candidate.
        observations: (parent, child, change of the loss) on the tokens of the first stage.
        history: one entry per generation.
        ended: why the search is over, empty while it isn't.
    """

    parent: Allocation
    kl: float
    done: int = 0
    seconds: float = 0.0
    seen: list[Allocation] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    history: list[Generation] = field(default_factory=list)
    ended: str = ""

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> EvolutionState:
        """Read what `save` wrote. Raises ArtifactError."""
        tree: dict[str, Any] = read_json(path)
        try:
            tree["parent"] = tuple(tree["parent"])
            tree["seen"] = [tuple(allocation) for allocation in tree["seen"]]
            tree["observations"] = [(tuple(a), tuple(b), float(change)) for a, b, change in tree["observations"]]
            tree["history"] = [Generation(**entry) for entry in tree["history"]]
            return cls(**tree)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"it doesn't hold the state of a search: {error}") from error


def evolve(
    fitness: Fitness,
    budget: ParamBudget,
    settings: Search,
    start: Callable[[], Allocation],
    state_file: Path,
    *,
    curves: Sequence[Sequence[float]] | None = None,
    report: Callable[[Generation], None] = lambda generation: None,
) -> EvolutionState:
    """Run or resume the search.

    Args:
        fitness: evaluates candidates.
        budget: that every candidate keeps.
        settings: the recipe's section.
        start: makes the first parent; not called when a state is resumed.
        state_file: written after every generation.
        curves: of each module over its levels, for screening proposals; None evaluates every proposal.
        report: called after every generation.

    Returns:
        The final state; `parent` is the answer.
    """
    final_tokens = settings.stages[-1].tokens
    begun = time.monotonic()
    if state_file.exists():
        state = EvolutionState.load(state_file)
        fitness.evaluations = state.history[-1].evaluations
        fitness.remember(state.parent, final_tokens, state.kl)
    else:
        parent = start()
        state = EvolutionState(parent, fitness.kl(parent, final_tokens), seen=[parent])
        spent = time.monotonic() - begun
        state.history.append(Generation(0, state.kl, improved=False, evaluations=fitness.evaluations, seconds=spent))
        state.save(state_file)
    used_before = state.seconds
    costs = costs_of(fitness.bank.space)
    while not state.ended:
        state.seconds = used_before + time.monotonic() - begun
        if state.done >= settings.generations:
            state.ended = "all generations done"
        elif settings.minutes is not None and state.seconds >= 60 * settings.minutes:
            state.ended = f"time is up ({settings.minutes:g} minutes)"
        else:
            _one_generation(state, fitness, budget, settings, costs, curves)
            state.seconds = used_before + time.monotonic() - begun
            state.history[-1].seconds = state.seconds
            report(state.history[-1])
        state.save(state_file)
    return state


def _one_generation(
    state: EvolutionState,
    fitness: Fitness,
    budget: ParamBudget,
    settings: Search,
    costs: list[list[int]],
    curves: Sequence[Sequence[float]] | None,
) -> None:
    progress = state.done / settings.generations
    if settings.minutes is not None:
        progress = max(progress, state.seconds / (60 * settings.minutes))
    candidates = _offspring(state, budget, settings, costs, curves, step=settings.step * (1 - progress))
    if not candidates:
        state.ended = "every neighbour of the best allocation has been tried"
        return
    parent = state.parent
    state.seen.extend(candidates)
    fitness.set_base(parent)
    last = len(settings.stages) - 1
    ranked: list[tuple[float, Allocation]] = []
    for number, stage in enumerate(settings.stages):
        pool = [*candidates, parent] if number in (0, last) else candidates
        losses = {candidate: fitness.kl(candidate, stage.tokens) for candidate in pool}
        if number == 0:
            state.observations += [(parent, child, losses[child] - losses[parent]) for child in candidates]
        if number != last:
            losses.pop(parent, None)
        ranked = sorted((loss, candidate) for candidate, loss in losses.items())
        candidates = [candidate for _, candidate in ranked[: stage.survivors]]
    best_kl, best = ranked[0]
    state.done += 1
    state.parent, state.kl = best, best_kl
    state.history.append(Generation(state.done, best_kl, best != parent, fitness.evaluations, state.seconds))


def _offspring(
    state: EvolutionState,
    budget: ParamBudget,
    settings: Search,
    costs: list[list[int]],
    curves: Sequence[Sequence[float]] | None,
    *,
    step: float,
) -> list[Allocation]:
    """New children of the parent: three in four are the most promising of many proposals, the others are random."""
    rng = random.Random(f"{settings.seed}:{state.done}")  # noqa: S311
    seen = set(state.seen)
    proposals: list[Allocation] = []
    wanted = settings.offspring if curves is None else settings.offspring * PROPOSALS
    try:
        for _ in range(wanted):
            child = level_switch(state.parent, costs, budget, rng, step=step, seen=seen)
            seen.add(child)
            proposals.append(child)
    except BudgetError:
        pass  # The neighbourhood is exhausted: what was found is what there is.
    if curves is None or len(proposals) <= settings.offspring:
        return proposals[: settings.offspring]
    surrogate = Surrogate(curves, state.observations)
    n_random = settings.offspring // 4
    promising = sorted(proposals[n_random:], key=lambda child: (surrogate.change(state.parent, child), child))
    return proposals[:n_random] + promising[: settings.offspring - n_random]
