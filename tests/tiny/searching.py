"""A run up to its search, and the state that it leaves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from darwinlm.runtime.artifact import read_json
from darwinlm.search.modules import PlacedModules
from darwinlm.search.problem import Problem
from darwinlm.stages.execution.run import Run
from darwinlm.stages.text import Texts
from darwinlm.streaming.decoder import Decoder
from darwinlm.units.space import Allocation
from tests.tiny.stages import result, run_stages


def searched(run: Run) -> SimpleNamespace:
    return run_stages(run, "search")


def placed_in(run: Run, dtype: torch.dtype = torch.float32) -> tuple[PlacedModules, Texts]:
    """The modules of a run in a decoder, with its texts; stages up to the database are run or reused."""
    texts, plan = result(run, "text"), result(run, "plan")
    decoder = Decoder(result(run, "dense").load(dtype), result(run, "dense").family)
    return PlacedModules(decoder, result(run, "database").reader, plan.space), texts


def state_of(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = read_json(folder / "stages" / "search" / "evolution.json")
    return tree


def timeless(tree: dict[str, Any]) -> dict[str, Any]:
    """A state or a record without what a clock says."""
    history = [{name: value for name, value in entry.items() if name != "seconds"} for entry in tree["history"]]
    return {name: value for name, value in tree.items() if name != "seconds"} | {"history": history}


def within_budget(problem: Problem, allocation: Allocation) -> bool:
    return problem.budget.allows(problem.cost.of(allocation) - problem.cost.fixed)
