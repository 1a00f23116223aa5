"""A baseline as a step: it gives a stitched model, as the search and the database do for ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.space import Allocation
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.artifact import read_json, write_json
from darwinlm.runtime.errors import BudgetError
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.step import Step, Task, Uses
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.stitch.stitch import stitch
from darwinlm.steps.text.sequences import TokenSequences
from lab.comparison.methods import BASELINES, MethodInputs

RESULT = "result.json"


@dataclass(frozen=True)
class BaselineResult:
    """The model of a baseline, its allocation, and what it recorded."""

    stitched: Stitched
    allocation: Allocation
    record: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Baseline(Step[BaselineResult]):
    """The model of a method in `BASELINES`.

    Attributes:
        method: Name of the method.
        minutes: Time limit of the search, for methods that search.
        database: None for methods that don't use it.
    """

    name = "method"
    version = 3
    writes = "the model of a baseline"
    settings = (Uses(UnitsSettings), Uses(SearchSettings, only=("rounds", "seed")))
    arithmetic = True

    method: str
    minutes: float | None
    dense: Checkpoint
    calibration: TokenSequences
    fitness: TokenSequences
    problem: Problem
    database: PruningDatabase | None

    @property
    def label(self) -> str:
        """Title of the method."""
        return BASELINES[self.method].title

    @property
    def folder_name(self) -> str:
        """Each method has its own folder."""
        return f"method_{self.method}"

    def work(self, task: Task) -> None:
        """Make the model. Raises BudgetError if it exceeds the budget."""
        texts = self.calibration.tokens, self.fitness.tokens
        given = MethodInputs(task.context, task.recipe, self.dense, *texts, self.problem, self.database)
        result = BASELINES[self.method].make(given, task.folder)
        used = self.problem.cost.of(result.allocation)
        if used > self.problem.budget.limit:
            words = self.problem.cost.words(used)
            raise BudgetError(f"{self.method} needs {words}, more than the budget: please report this")
        place = partial(in_file, folder=task.folder)
        save_model(stitch(result.reader, result.allocation, place), task.folder / "model")
        write_json(task.folder / RESULT, {"allocation": result.allocation, "record": result.record})

    def read(self, task: Task) -> BaselineResult:
        """The model and its record."""
        result = read_json(task.folder / RESULT)
        stitched = Stitched(Checkpoint.open(task.folder / "model"), task.stage.digest)
        return BaselineResult(stitched, tuple(result["allocation"]), result["record"])
