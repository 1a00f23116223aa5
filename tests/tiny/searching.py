"""A run up to its search, and the state that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darwinlm.artifact import read_json
from darwinlm.pipeline import run_stages
from darwinlm.run import Run
from darwinlm.stages.results import StageResults


def searched(run: Run) -> StageResults:
    """What each stage up to the search handed on."""
    return run_stages(run, "search")


def state_of(folder: Path) -> dict[str, Any]:
    """The state of a run's search."""
    tree: dict[str, Any] = read_json(folder / "stages" / "search" / "evolution.json")
    return tree


def timeless(tree: dict[str, Any]) -> dict[str, Any]:
    """A state or a record without what a clock says."""
    history = [{name: value for name, value in entry.items() if name != "seconds"} for entry in tree["history"]]
    return {name: value for name, value in tree.items() if name != "seconds"} | {"history": history}
