"""Figures of the refit, the words that show them, and its record."""

from __future__ import annotations

from typing import ClassVar, Literal, TypedDict

from darwinlm.runtime.amounts import NATS, loss, nats
from darwinlm.runtime.figures import StepFigures


class RefitFigures(StepFigures):
    """The refit of the whole model; `stitched` was kept where that was no better for it. KL is on validation text.

    So many of the `modules` were `fitted`. `strength` says how far the weights go toward the fitted ones, from 0 to 1.
    """

    heading: ClassVar[str] = "Refit"

    fitted: int
    modules: int
    kept: Literal["refit", "stitched"]
    strength: float
    kl_before: float | None = None
    kl_after: float | None = None
    unit: str = NATS

    @property
    def label(self) -> str:
        """Whether the refit was kept."""
        return "refit" if self.kept == "refit" else "refit (no gain)"

    def account(self) -> tuple[str, ...]:
        """How many modules were fitted, how far the model went, and what it gained."""
        others = ""
        if self.fitted < self.modules:
            others = "; the others kept their weights, because no fit was better on validation text"
        measured = ""
        if self.kl_before is not None and self.kl_after is not None:
            after = nats(self.kl_after) if self.unit == NATS else f"{self.kl_after:.3g}"
            measured = f" ({loss(self.kl_before, self.unit)} before, {after} after)"
        if self.kept == "refit":
            chosen = (
                f"The model took {self.strength:.0%} of the way to these weights, which was best on validation "
                f"text{measured}."
            )
        else:
            chosen = (
                f"The whole model was not better with them on validation text{measured}, so the weights before the "
                "refit were kept."
            )
        fitted = f"{self.fitted} of {self.modules} modules were fitted toward the dense model"
        return (f"{fitted}{others}. {chosen}",)

    def card(self) -> str:
        """Whether the refit was kept."""
        if self.kept == "refit":
            return "Output projections were then refitted by ridge regression toward the dense model."
        return "A refit by ridge regression was no better on validation text and was dropped."


class RefitDecision(TypedDict):
    """How far the weights go toward the fitted ones.

    Attributes:
        kept: Whether the refit was better on validation text, or the stitched weights were kept.
        strength: Chosen interpolation factor, from 0 to 1.
        kl_before: KL to the dense model on validation text, in nats per token, without the refit.
        kl_after: The same with the best factor above 0.
        kl_by_strength: The same by interpolation factor.
    """

    kept: Literal["refit", "stitched"]
    strength: float
    kl_before: float
    kl_after: float
    kl_by_strength: dict[str, float]


class RefitRecord(RefitDecision):
    """Record of a refit: how many of the modules were fitted, and the decision."""

    fitted: int
    modules: int
