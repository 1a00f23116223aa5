"""Figures of measured models, and how far they read their context."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import field_validator

from darwinlm.runtime.amounts import NOTHING
from darwinlm.runtime.figures import Figures, ModelNames, Passage
from darwinlm.runtime.tables import Table
from darwinlm.steps.evaluate import item_metrics  # noqa: F401 - its import registers them
from darwinlm.steps.evaluate.metric import SizeMetric, size_metrics
from darwinlm.steps.evaluate.metrics import (
    Agreement,
    BlockParams,
    Bytes,
    DecodeRate,
    Divergence,
    Params,
    Perplexity,
    PromptRate,
    SpeedSpread,
)

DENSE, UNIFORM, STITCHED, BEFORE, RECOVERED = "dense", "uniform", "stitched", "before", "recovered"
"""Names of measured models: `before` is what `darwinlm recover` was given. A corrected model goes by the name that the
pipeline gives it."""


COPYING = "Copying from the context"


COPIED_MEANS = "Copied: the model is given words or text twice; the share of the repeated tokens that it predicts."


@dataclass(frozen=True)
class CopyingScore:
    """Share of the tokens that can be copied and are ranked first, and their mean cross-entropy in nats."""

    name: str
    accuracy: float
    loss: float
    tokens: int


class LookingBackFigures(Figures):
    """How far a model reads its context: copying. The remarks say what was left out."""

    copying: tuple[CopyingScore, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskScore:
    """A score with labels, its difference from the dense model's, and the standard error of this.

    None where it isn't defined for the texts. `count` is the number of texts or queries.
    """

    name: str
    value: float | None
    difference: float | None
    error: float | None
    count: int


class ReadingFigures(Figures):
    """How a model that reads texts one by one does with their labels; a remark says why there are no scores."""

    texts: int
    scores: tuple[TaskScore, ...] = ()
    remark: str = ""

    def with_scores(self, found: tuple[tuple[TaskScore, ...], str]) -> ReadingFigures:
        """The figures with scores and a remark."""
        return self.model_copy(update={"scores": found[0], "remark": found[1]})


class ModelFigures(Figures):
    """One model, measured on evaluation text.

    `metrics` are its figures by the names of the metrics; those of tokens are means over `tokens` predictions. A figure
    that wasn't measured is None or absent; sizes are always present. `looking_back` and `reading` are None if they were
    not measured.
    """

    metrics: dict[str, int | float | None]
    tokens: int | None = None
    continuations: tuple[str, ...] = ()
    looking_back: LookingBackFigures | None = None
    reading: ReadingFigures | None = None

    @field_validator("metrics")
    @classmethod
    def _has_sizes(cls, metrics: dict[str, int | float | None]) -> dict[str, int | float | None]:
        missing = [size.name for size in size_metrics() if not isinstance(metrics.get(size.name), int)]
        if missing:
            raise ValueError(f"no whole number for {', '.join(missing)}")
        return metrics

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self._size(Params)

    @property
    def block_params(self) -> int:
        """Number of parameters in the blocks."""
        return self._size(BlockParams)

    @property
    def bytes(self) -> int:
        """Bytes of the weights in the element type of the saved model."""
        return self._size(Bytes)

    @property
    def perplexity(self) -> float | None:
        """Exponential of the mean cross-entropy."""
        return self.metrics.get(Perplexity.name)

    @property
    def kl(self) -> float | None:
        """Mean KL(dense ‖ model) in nats per token."""
        return self.metrics.get(Divergence.name)

    @property
    def agreement(self) -> float | None:
        """Share of tokens at which both models rank the same token first."""
        return self.metrics.get(Agreement.name)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of a prompt."""
        return self.metrics.get(PromptRate.name)

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Speed of new text."""
        return self.metrics.get(DecodeRate.name)

    @property
    def speed_spread(self) -> float | None:
        """By how much timed rounds differ, as a share of the median; None after a single one."""
        return self.metrics.get(SpeedSpread.name)

    def _size(self, size: type[SizeMetric]) -> int:
        value = self.metrics[size.name]
        assert isinstance(value, int), "sizes are checked"
        return value


Measured = dict[str, ModelFigures]
"""Figures by model: `dense` first, the saved one last."""


def copying_passage(models: Measured, name: ModelNames) -> Passage | None:
    """How far models read their context, and what wasn't measured; None if no model has such figures."""
    looking_back = {key: model.looking_back for key, model in models.items()}
    dense, *smaller = looking_back.values()
    if dense is None or None in smaller:
        return None
    remarks = [f"{remark[:1].upper()}{remark[1:]}." for remark in dense.remarks]
    rows = [
        (name(key), *(f"{100 * score.accuracy:.0f} %" for score in figures.copying))
        for key, figures in looking_back.items()
        if figures is not None
    ]
    if not dense.copying:
        return Passage(COPYING, " ".join(remarks)) if remarks else None
    headings = ("model", *(f"copied, {score.name}" for score in dense.copying))
    return Passage(COPYING, tables=(Table(headings, rows, [COPIED_MEANS, *remarks], final=True),))


READING = "Labels"
READING_MEANS = (
    "In brackets: the difference from the dense model, with its standard error, paired over the same texts or queries."
)


def reading_passage(models: Measured, name: ModelNames) -> Passage | None:
    """How models do with the labels of evaluation text; None if no model has such figures."""
    reading = {key: model.reading for key, model in models.items() if model.reading is not None}
    if not reading:
        return None
    first = next(iter(reading.values()))
    if not first.scores:
        return Passage(READING, f"{first.remark[:1].upper()}{first.remark[1:]}.") if first.remark else None
    headings = ("model", *(f"{score.name} ({score.count:,})" for score in first.scores))
    rows = [
        (name(key), *(task_cell(score, key == DENSE) for score in figures.scores)) for key, figures in reading.items()
    ]
    return Passage(READING, tables=(Table(headings, rows, [READING_MEANS], final=True),))


def task_cell(score: TaskScore, dense: bool) -> str:
    """A score in a table, with its difference from the dense model's; a dash where it isn't defined."""
    if score.value is None:
        return NOTHING
    if dense or score.difference is None:
        return f"{score.value:.3f}"
    error = "" if score.error is None else f" ± {score.error:.3f}"
    return f"{score.value:.3f} ({score.difference:+.3f}{error})"


def score_words(score: TaskScore | None) -> list[str]:
    """A score beside the dense model's, as the only clause; none where it isn't defined."""
    if score is None or score.value is None or score.difference is None:
        return []
    error = "" if score.error is None else f" ± {score.error:.3f}"
    before = score.value - score.difference
    return [f"{score.name} {score.value:.3f} instead of {before:.3f} ({score.difference:+.3f}{error})"]


MAIN = ("nDCG@10", "accuracy", "Spearman", "AUC")
"""Scores in the order in which one is chosen to stand for all."""


def main_score(reading: ReadingFigures) -> TaskScore | None:
    """The score that tells most: that of ranking, or else of labels; None without labels."""
    by_name = {score.name: score for score in reading.scores if score.value is not None}
    return next((by_name[name] for name in MAIN if name in by_name), None)
