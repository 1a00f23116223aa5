"""Contents of `comparison.json`: methods under one budget, as a closed, versioned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from darwinlm.runtime.figures import Figures, read_figures
from darwinlm.steps.evaluate.quality import Quality


class MeasuredText(Figures):
    """An evaluation text."""

    source: str
    tokens: int


class ComparedBudget(Figures):
    """The budget of all methods; `upper` and `dense` are amounts of `unit`."""

    kind: str
    unit: str
    upper: float
    dense: float
    keep: float | None


class ComparedMethod(Figures):
    """A row: a method and the figures of its model.

    `method` is its name for `--methods`, or `dense`, whose times are None. If a stage was interrupted (`resumed`), only
    its last part was timed. Tasks are in the format of `evaluation.harness`.
    """

    method: str
    title: str
    source: str | None = None
    seconds: float | None = None
    database_seconds: float | None = None
    resumed: bool = False
    training_tokens: int = 0
    allocation: tuple[int, ...] | None = None
    record: dict[str, Any] = Field(default_factory=dict)
    params: int
    block_params: int
    bytes: int
    texts: dict[str, Quality]
    tasks: tuple[dict[str, Any], ...] = ()


class ComparisonRecord(Figures):
    """A comparison, possibly unfinished; the dense model is the first row."""

    format: Literal[2] = 2
    version: str
    model: str
    budget: ComparedBudget
    texts: dict[str, MeasuredText]
    suite: str | None
    limit: int | None
    recipe: dict[str, Any]
    rows: tuple[ComparedMethod, ...] = ()


def read_comparison(path: Path) -> ComparisonRecord:
    """Read a comparison.json. Raises ArtifactError."""
    return read_figures(path, ComparisonRecord, "comparison of python -m lab compare")
