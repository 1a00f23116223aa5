"""A baseline as a stage: it gives a stitched model, as the search and the database do for ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.space import Allocation
from darwinlm.runtime.artifact import read_json, write_json
from darwinlm.runtime.errors import BudgetError
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.stitch.stitch import stitch
from darwinlm.steps.text.sequences import TokenSequences
from lab.comparison.methods import BASELINES, MethodInputs

RESULT = "result.json"


@dataclass(frozen=True)
class Baseline:
    """The model of a baseline, its allocation, and what it recorded."""

    stitched: Stitched
    allocation: Allocation
    record: dict[str, Any]


def baseline_stage(
    name: str,
) -> Stage[[Checkpoint, TokenSequences, TokenSequences, Problem, PruningDatabase | None], Baseline]:
    """The stage of a method in `BASELINES`; methods that don't use the database get none."""
    method = BASELINES[name]

    def make(
        task: Task,
        dense: Checkpoint,
        calibration: TokenSequences,
        fitness: TokenSequences,
        plan: Problem,
        database: PruningDatabase | None,
    ) -> None:
        given = MethodInputs(task.context, task.recipe, dense, calibration.tokens, fitness.tokens, plan, database)
        result = method.make(given, task.folder)
        used = plan.cost.of(result.allocation)
        if used > plan.budget.limit:
            raise BudgetError(f"{name} needs {plan.cost.words(used)}, more than the budget: please report this")
        place = partial(in_file, folder=task.folder)
        save_model(stitch(result.reader, result.allocation, place), task.folder / "model")
        write_json(task.folder / RESULT, {"allocation": result.allocation, "record": result.record})

    def read(task: Task) -> Baseline:
        result = read_json(task.folder / RESULT)
        stitched = Stitched(Checkpoint.open(task.folder / "model"))
        return Baseline(stitched, tuple(result["allocation"]), result["record"])

    return Stage(
        f"method_{name}",
        make,
        read,
        version=3,
        title=method.title,
        writes="the model of a baseline",
        settings=("units", "search.rounds", "search.seed", *(("search.minutes",) if method.searches else ())),
        arithmetic=True,
    )
