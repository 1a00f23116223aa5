"""The search for an allocation (DarwinLM, section 3.2): one level for every module, within the budget.

`search` follows that section. The first parent has equal layers (`propose.py`). A generation (`evolution.py`) derives
children from the parent by the recipe's method (`search_method.py`), within the exact budget (`problem.py`). Selection
rounds evaluate fewer and fewer of them on more and more text, by KL to the dense model (`fitness.py`), after training
if the recipe asks for it (`candidate_training.py`). The best child becomes the next parent. The prediction of good
children (`slopes.py`, `prediction.py`, `knapsack.py`) is not in the paper.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from darwinlm.model.objective.objective import Objective
from darwinlm.model.units.space import Allocation, PerLevel
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.steps.budget.equal import EqualLayers
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search.candidate_training import CandidateTrainer
from darwinlm.steps.search.evolution import evolve
from darwinlm.steps.search.fitness import Clock, Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.search.propose import uniform_allocations, uniform_start
from darwinlm.steps.search.search_figures import SearchOutcome, SearchRecord
from darwinlm.steps.search.search_method import Offspring, SearchInputs
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.search.state import SearchState

if TYPE_CHECKING:
    from darwinlm.runtime.console import Reporter

STATE = "evolution.json"

LIKELY = 6
"""Uniform allocations of the lowest predicted losses that are measured, if the database has estimates. Each takes new
weights of all modules. Estimates rank them as measured losses do: of ten for SmolLM2-135M-Instruct at 75 and 50 %, the
best was among the first two."""


def search(
    model: Decoder,
    database: DatabaseReader,
    problem: Problem,
    objective: Objective,
    texts: Mapping[str, Tensor],
    settings: SearchSettings,
    folder: Path,
    reporter: Reporter,
    *,
    batch_tokens: int,
    seconds: float = math.inf,
) -> SearchOutcome:
    """Find the allocation, or resume an interrupted search.

    `objective` is what of the dense model is kept. `texts` are fitness text, [n, t], and training text if candidates
    are trained. `folder` holds the state. It ends after `seconds`, or after `search.minutes`.

    Returns the best allocation, the best uniform one at the same budget, and figures for the report.

    Raises:
        ArtifactError: The state is damaged or another search's.
        BudgetError: No allocation keeps the budget.
        NumericsError: Losses aren't finite.
    """
    clock = Clock(min(seconds, math.inf if settings.minutes is None else 60 * settings.minutes))
    placed = PlacedModules(model, database, problem.space)
    sequences = -(-settings.fitness_needed // texts["fitness"].shape[1])
    memory = HiddenMemory(folder)
    fitness = Fitness(placed, texts["fitness"][:sequences], objective, batch_tokens=batch_tokens, memory=memory)
    estimates = database.estimated_losses(problem.space)
    losses = database.local_errors(problem.space) if estimates is None else estimates
    inputs = SearchInputs(fitness, problem, database, settings, losses, estimates is not None, reporter.say)
    proposed = settings.method.begin(inputs)

    def propose(state: SearchState) -> Offspring:
        placed.begin(state.parent)
        return proposed(state)

    trainer = None
    if settings.training_needed:
        trainer = CandidateTrainer(placed, fitness, texts["training"], folder)

    def tell(state: SearchState) -> None:
        reporter.step(
            state.done,
            settings.generations,
            what="generation",
            loss=(state.history[0].kl, state.kl),
            unit=objective.unit,
            left=clock.left if math.isfinite(clock.limit) else None,
        )
        latest = state.history[-1]
        reporter.measured(
            state.done,
            {
                "generation": state.done,
                "kl": state.kl,
                "uniform_kl": uniform_kl,
                "modules_changed": latest.moved,
                "evaluations": latest.evaluations,
            },
        )

    database.spill_into(folder)
    tokens = settings.rounds[0].tokens
    alike = by_prediction(uniform_allocations(problem), losses)
    uniform = best_of(alike if estimates is None else alike[:LIKELY], fitness, losses, tokens, clock)
    uniform_kl = fitness.kl(uniform, settings.rounds[-1].tokens)
    state = evolve(
        fitness,
        problem,
        settings,
        lambda: (
            uniform_start(problem, losses, uniform, random.Random(settings.seed))  # noqa: S311
            if problem.equal is None
            else _equal_start(problem.equal, fitness, losses, uniform, tokens, clock)
        ),
        folder / STATE,
        clock=clock,
        propose=propose,
        trainer=trainer,
        report=tell,
    )
    generations = "1 generation" if state.done == 1 else f"{state.done} generations"
    reporter.say(f"search: ended after {generations}: {state.ended}")
    record: SearchRecord = {
        "start_kl": state.history[0].kl,
        "uniform_kl": uniform_kl,
        "kl": state.kl,
        "cost": problem.cost.of(state.parent),
        "evaluations": state.history[-1].evaluations,
        "seconds": state.seconds,
        "ended": state.ended,
        "history": [asdict(generation) for generation in state.history],
    }
    return {"allocation": state.parent, "uniform": uniform, "record": record}


def _equal_start(
    equal: EqualLayers, fitness: Fitness, losses: PerLevel, uniform: Allocation, n_tokens: int, clock: Clock
) -> Allocation:
    """The best first parent with equal layers; the uniform model is one if it can be used, also when time runs out."""
    best = best_of(equal.first(losses), fitness, losses, n_tokens, clock)
    choices = [best, uniform] if uniform in equal else [best]
    return min(choices, key=lambda choice: fitness.kls([choice], n_tokens)[0])


def without_choice(problem: Problem, only: Allocation) -> SearchOutcome:
    """What a search would find if there is only one allocation; nothing is evaluated."""
    blocks = {module.block: level for module, level in zip(problem.space.modules, only, strict=True)}
    first = None if problem.whole else sum(level > 0 for level in blocks.values())
    every, some = "all blocks fit into the budget", f"the first {first} of {len(blocks)} layers are kept"
    record = SearchRecord(
        start_kl=0.0,
        uniform_kl=0.0,
        kl=0.0,
        cost=problem.cost.of(only),
        evaluations=0,
        seconds=0.0,
        ended=every if first is None else some,
        history=[],
        first=first,
    )
    return SearchOutcome(allocation=only, uniform=only, record=record)


def by_prediction(choices: list[Allocation], losses: PerLevel) -> list[Allocation]:
    """Allocations by ascending sum of single-module losses."""
    return sorted(choices, key=lambda choice: sum(row[level] for row, level in zip(losses, choice, strict=True)))


def best_of(choices: list[Allocation], fitness: Fitness, losses: PerLevel, n_tokens: int, clock: Clock) -> Allocation:
    """The best of at least one allocation.

    All are measured on a quarter of the tokens, in the order of their predicted losses, so that the likely ones come
    first if time runs out. The best three are compared on all `n_tokens` fitness tokens. At least one allocation is
    measured, whatever the clock says.
    """
    choices = by_prediction(choices, losses)
    for tokens in (max(n_tokens // 4, 1), n_tokens):
        measured: list[float] = []
        while len(measured) < len(choices) and (not measured or parallel.broadcast(clock.left) > 0):
            together = max(len(measured), parallel.size())  # twice as many on every walk through the blocks
            measured += fitness.kls(choices[len(measured) : len(measured) + together], tokens)
        ranked = sorted(zip(measured, choices, strict=False), key=lambda pair: pair[0])
        choices = [choice for _, choice in ranked[:3]]
    return choices[0]
