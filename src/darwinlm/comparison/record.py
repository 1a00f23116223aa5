"""What `comparison.json` holds: methods under one budget, as a closed, versioned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from darwinlm.report.summary import FORMAT, Figures, read_figures


class TextQuality(BaseModel):
    """Perplexity and KL(dense ‖ model) on one text, and what else was measured on it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    perplexity: float
    kl: float


class MeasuredText(Figures):
    """A text that models are measured on."""

    source: str
    tokens: int


class ComparedBudget(Figures):
    """The bound of all methods; `upper` and `dense` are amounts of `unit`."""

    kind: str
    unit: str
    upper: float
    dense: float
    keep: float | None


class ComparedMethod(Figures):
    """A row: how a model was made, and its figures.

    Attributes:
        method: Name for `--methods`; `dense` for the dense model.
        title: Name for the table.
        source: The paper.
        seconds: Time of the method and its steps; None for the dense model.
        database_seconds: Time of the pruning database, if the method uses it.
        resumed: Whether a part was interrupted, so that only its last part was timed.
        training_tokens: Tokens that the method trains on.
        allocation: Level of each module.
        record: Details reported by the method.
        params: Parameters.
        block_params: Parameters inside the blocks.
        bytes: Size of its weights.
        texts: Quality by the name of the text.
        tasks: Scores, as `evaluation.harness` writes them.
    """

    method: str
    title: str
    source: str | None = None
    seconds: float | None
    database_seconds: float | None
    resumed: bool = False
    training_tokens: int
    allocation: tuple[int, ...] | None = None
    record: dict[str, Any]
    params: int
    block_params: int
    bytes: int
    texts: dict[str, TextQuality]
    tasks: tuple[dict[str, Any], ...] = ()


class ComparisonRecord(Figures):
    """A comparison, finished or so far; the dense model is the first row."""

    format: Literal[1] = FORMAT
    version: str
    model: str
    budget: ComparedBudget
    texts: dict[str, MeasuredText]
    suite: str | None
    limit: int | None
    recipe: dict[str, Any]
    rows: tuple[ComparedMethod, ...] = ()

    def with_row(self, row: ComparedMethod) -> ComparisonRecord:
        """One row more."""
        return self.model_copy(update={"rows": (*self.rows, row)})

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump(mode="json")


def read_comparison(path: Path) -> ComparisonRecord:
    """Read a comparison.json. Raises ArtifactError."""
    return read_figures(path, ComparisonRecord, "comparison: give the output folder of darwinlm compare")
