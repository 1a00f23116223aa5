"""Refit: output projections corrected towards the dense residual stream, as far as the whole model improves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast

from pydantic import Field

from darwinlm.runtime.amounts import nats
from darwinlm.runtime.figures import StepFigures
from darwinlm.runtime.quantities import Whole
from darwinlm.runtime.section import Section
from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Uses
from darwinlm.steps.text.step import TextSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.stitch.step import Stitched
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

RECORD = "record.json"


class RefitSettings(Section):
    """Least-squares correction of the stitched model's output projections towards the dense residual stream."""

    tokens: Whole = Field(32768, ge=0)
    """Calibration tokens for the fit; at most `text.calibration_tokens`. 0 skips the refit."""


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
            measured = f" (KL {nats(self.kl_before)} before, {nats(self.kl_after)} after)"
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


@dataclass(frozen=True)
class Refitted:
    """Result of the refit."""

    folder: Path
    stitched: Stitched
    record: RefitRecord
    digest: str

    @property
    def checkpoint(self) -> Checkpoint:
        """The model before the correction."""
        return self.stitched.checkpoint

    def block(self, block: int) -> dict[str, Tensor]:
        """Weights of a block of the corrected model by name in it."""
        from darwinlm.steps.refit.strength import interpolated

        checkpoint = self.stitched.checkpoint
        stored = checkpoint.read(checkpoint.block_prefix(block))
        if self.record["kept"] == "stitched":
            return stored
        return stored | interpolated(self.folder, checkpoint, block, self.record["strength"])

    def model(self, dtype: torch.dtype | None = None, **how: Any) -> Any:
        """The corrected model, in float32 without a `dtype`; `how` it is loaded is for `Checkpoint.load`."""
        import torch

        return self.stitched.checkpoint.load(dtype or torch.float32, weights=self.block, **how)


@dataclass(frozen=True, eq=False)
class Refit(Step[Refitted]):
    """The stitched model, corrected towards the dense one.

    Attributes:
        validation: Text that chooses how far the correction goes.
    """

    name = "refit"
    version = 5
    writes = "corrected output projections"
    Settings = RefitSettings
    section = "refit"
    Figures = RefitFigures
    text_use = (
        ("calibration", "the refit"),
        ("validation", "strength of the refit"),
    )
    settings = (Uses(RefitSettings),)
    arithmetic = True
    together = True

    stitched: Stitched
    dense: Checkpoint
    calibration: TokenSequences
    validation: TokenSequences

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Calibration text, of which the refit reads the beginning, and validation text."""
        settings = recipe.section(TextSettings)
        return {"calibration": settings.calibration_tokens, "validation": settings.validation_tokens}

    def work(self, task: Task) -> None:
        """Fit the stitched model towards the dense one, and choose how far to go."""
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.refit.strength import fit_and_choose

        text = self.calibration.first(task.settings(RefitSettings).tokens).tokens
        record = fit_and_choose(
            task.context, self.dense, self.stitched.checkpoint, text, self.validation.tokens, task.folder
        )
        improved = record["kept"] == "refit"
        far = f", interpolation {record['strength']:.0%}" if improved else ""
        task.context.reporter.say(
            f"refit: {record['fitted']} of {record['modules']} modules fitted{far}; KL on validation text "
            f"{record['kl_before']:.3f} -> {record['kl_after']:.3f}"
            + ("" if improved else ": no improvement, so the stitched weights are kept")
        )
        parallel.in_main(write_json, task.folder / RECORD, record)

    def read(self, task: Task) -> Refitted:
        """The corrected model, and the record."""
        from darwinlm.runtime.artifact import read_record

        record = cast("RefitRecord", read_record(task.folder / RECORD))
        return Refitted(task.folder, self.stitched, record, task.stage.digest)

    def figures(self, task: Task, result: Refitted) -> RefitFigures:
        """From the record."""
        return RefitFigures.of_record(result.record)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Both models; fits; comparisons on validation text. None without a refit."""
        from darwinlm.steps.refit.refit import STRENGTHS
        from darwinlm.steps.workload import largest

        sizes, k, r = load.sizes, load.sizes.kept, load.sizes.width
        settings, held_out = load.settings(RefitSettings), load.settings(TextSettings).validation_tokens
        if not settings.tokens:
            return None
        tokens, d = settings.tokens + held_out, load.widest  # a module may stay whole
        work = sizes.operations(tokens, 1 + k) + sizes.operations(len(STRENGTHS) * held_out, k, heads=2)
        for width in (shape.sizes.width * k for shape in sizes.shapes):
            work += load.exact * tokens * width * (width + 2 * r) + load.slow * 2 * (width**3 / 3 + 4 * width**2 * r)
        moments = {"moments of one module": d * (20 * d + 32 * r)}
        fitting = load.passing | {"blocks": (2 + 2 * k) * load.block} | moments
        held = largest(fitting, {"heads": 2 * load.head, "logits": load.compared})
        return Cost(work, load.streams(tokens, 4) | held)
