"""Figures of measured models, and how far they read their context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import field_validator

from darwinlm.runtime.figures import Figures, ModelNames, Passage
from darwinlm.runtime.tables import Table
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

if TYPE_CHECKING:
    pass


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


class ModelFigures(Figures):
    """One model, measured on evaluation text.

    `metrics` are its figures by the names of the metrics; those of tokens are means over `tokens` predictions. A figure
    that wasn't measured is None or absent; sizes are always present. `looking_back` is None if it wasn't measured.
    """

    metrics: dict[str, int | float | None]
    tokens: int | None = None
    continuations: tuple[str, ...] = ()
    looking_back: LookingBackFigures | None = None

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
