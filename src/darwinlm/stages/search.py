"""Search: single-module scores, the first parent, evolution; and the best uniform allocation to compare with."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from darwinlm.artifact import StageFolder, read_json, write_json
from darwinlm.families.decoder import Decoder
from darwinlm.run import Run
from darwinlm.search.bank import ModuleBank
from darwinlm.search.evolution import EvolutionState, evolve
from darwinlm.search.fitness import Fitness
from darwinlm.search.scores import Scores, single_module_scores
from darwinlm.search.space import Allocation
from darwinlm.search.start import knapsack_start, random_start, uniform_allocations
from darwinlm.stages.database import Database
from darwinlm.stages.plan import Plan
from darwinlm.stages.text import Texts

RESULT = "result.json"
SCORES = "scores.json"
STATE = "evolution.json"


@dataclass(frozen=True)
class Found:
    """What the search settled on.

    Attributes:
        stage: holds it.
        allocation: the answer.
        uniform: the best allocation with equal layers at the same budget.
        record: start, history and figures for the report.
    """

    stage: StageFolder
    allocation: Allocation
    uniform: Allocation
    record: dict[str, Any]


def search_stage(run: Run, texts: Texts, database: Database, plan: Plan) -> Found:
    """Find the allocation.

    Raises:
        BudgetError: no allocation keeps the budget.
        NumericsError: losses aren't finite.
    """
    recipe = run.recipe
    key = {
        "database": database.stage.digest,
        "fitness": texts["fitness"].digest,
        "search": recipe.search.model_dump(),
        "budget": recipe.budget.model_dump(),
        "arithmetic": run.arithmetic,
    }
    with run.stage("search", key, "search") as (stage, work):
        if work:
            _search(run, texts, database, plan, stage)
        result = read_json(stage.folder / RESULT)
    return Found(stage, tuple(result["allocation"]), tuple(result["uniform"]), result["record"])


def _search(run: Run, texts: Texts, database: Database, plan: Plan, stage: StageFolder) -> None:
    settings = run.recipe.search
    model = run.checkpoint.load(run.dtype, run.device)
    bank = ModuleBank(Decoder(model, run.checkpoint.family), database.reader, plan.space)
    needed = max(settings.score_tokens, *(part.tokens for part in settings.stages))
    rows = -(-needed // texts["fitness"].tokens.shape[1])
    fitness = Fitness(bank, texts["fitness"].tokens[:rows], batch_tokens=run.batch_tokens)

    uniform = min(
        uniform_allocations(plan.space, plan.budget), key=lambda choice: fitness.kl(choice, settings.score_tokens)
    )
    final_tokens = settings.stages[-1].tokens

    if settings.start == "knapsack":
        curves = _scores(run, fitness, database, plan, stage)
    else:
        curves = [
            [database.reader.error(module.block, module.kind, level) for level in module.levels]
            for module in plan.space.modules
        ]

    def start() -> Allocation:
        if settings.start == "uniform":
            return uniform
        if settings.start == "random":
            return random_start(plan.space, plan.budget, random.Random(settings.seed))  # noqa: S311
        return knapsack_start(plan.space, plan.budget, curves)

    state = evolve(
        fitness,
        plan.budget,
        settings,
        start,
        stage.folder / STATE,
        curves=curves if settings.screen else None,
        report=lambda generation: run.reporter.advance(generation.number, settings.generations),
    )
    write_json(stage.folder / RESULT, _result(state, uniform, fitness.kl(uniform, final_tokens), run))


def _scores(run: Run, fitness: Fitness, database: Database, plan: Plan, stage: StageFolder) -> Scores:
    path = stage.folder / SCORES
    known: dict[str, float] = read_json(path) if path.exists() else {}
    return single_module_scores(
        plan.space,
        database.reader,
        fitness,
        n_tokens=run.recipe.search.score_tokens,
        n_levels=run.recipe.search.score_levels,
        known=known,
        progress=run.reporter.advance,
        save=lambda: write_json(path, known),
    )


def _result(state: EvolutionState, uniform: Allocation, uniform_kl: float, run: Run) -> dict[str, Any]:
    record = {
        "start": run.recipe.search.start,
        "start_kl": state.history[0].kl,
        "uniform_kl": uniform_kl,
        "kl": state.kl,
        "evaluations": state.history[-1].evaluations,
        "seconds": state.seconds,
        "ended": state.ended,
        "history": [asdict(generation) for generation in state.history],
    }
    return {"allocation": state.parent, "uniform": uniform, "record": record}
