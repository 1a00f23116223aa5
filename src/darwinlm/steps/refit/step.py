"""Refit: output projections corrected towards the dense residual stream, as far as the whole model improves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Uses, Work
from darwinlm.steps.refit.refit_figures import RefitFigures, RefitRecord
from darwinlm.steps.refit.refit_settings import RefitSettings
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

RECORD = "record.json"
MEETINGS = 14
"""How often processes meet in a block, of all walks."""
FIT_LAUNCHES, SUM_LAUNCHES = 150, 40
"""Kernels of the fit of a projection on a GPU, and of the sums for it over a batch."""


@dataclass(frozen=True)
class Refitted(Stitched):
    """The corrected model. Its checkpoint is the model before the correction, which is in `folder`."""

    folder: Path = field(kw_only=True)
    record: RefitRecord = field(kw_only=True)

    def block(self, block: int) -> dict[str, Tensor]:
        """Weights of a block of the corrected model by name in it."""
        from darwinlm.steps.refit.strength import interpolated

        stored = super().block(block)
        if self.record["kept"] == "stitched":
            return stored
        return stored | interpolated(self.folder, self.checkpoint, block, self.record["strength"])


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
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.runtime import parallel
        from darwinlm.runtime.amounts import NATS
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.refit.strength import fit_and_choose

        text = self.calibration.first(task.settings(RefitSettings).tokens).tokens
        record = fit_and_choose(
            task.context, self.dense, self.stitched.checkpoint, text, self.validation.tokens, task.folder
        )
        improved, unit = record["kept"] == "refit", objective_of(self.dense).unit
        before, after = (
            f"{loss:.3f}" if unit == NATS else f"{loss:.3g}" for loss in (record["kl_before"], record["kl_after"])
        )
        far = f", interpolation {record['strength']:.0%}" if improved else ""
        task.context.reporter.say(
            f"refit: {record['fitted']} of {record['modules']} modules fitted{far}; "
            f"{'KL' if unit == NATS else unit} on validation text {before} -> {after}"
            + ("" if improved else ": no improvement, so the stitched weights are kept")
        )
        parallel.in_main(write_json, task.folder / RECORD, record)

    def read(self, task: Task) -> Refitted:
        """The corrected model, and the record."""
        from darwinlm.runtime.artifact import read_record

        record = cast("RefitRecord", read_record(task.folder / RECORD))
        return Refitted(self.stitched.checkpoint, task.stage.digest, folder=task.folder, record=record)

    def figures(self, task: Task, result: Refitted) -> RefitFigures:
        """From the record."""
        from darwinlm.model.objective.chosen import objective_of

        return RefitFigures.of_record({**result.record, "unit": objective_of(self.dense).unit})

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Both models; fits; comparisons on validation text. None without a refit, or if all blocks fit."""
        from darwinlm.steps.refit.refit import STRENGTHS
        from darwinlm.steps.workload import largest

        sizes, k, r = load.sizes, load.sizes.kept, load.sizes.width
        settings, held_out = load.settings(RefitSettings), load.settings(TextSettings).validation_tokens
        if not settings.tokens or sizes.whole:
            return None
        tokens, d = settings.tokens + held_out, load.widest  # a module may stay whole
        work = sizes.operations(tokens, 1 + k) + sizes.operations(len(STRENGTHS) * held_out, k, heads=2)
        for width in (shape.sizes.width * k for shape in sizes.shapes):
            work += load.exact * tokens * width * (width + 2 * r) + load.slow * 2 * (width**3 / 3 + 4 * width**2 * r)
        moments = {"moments of one module": d * (20 * d + 32 * r)}
        fitting = load.passing | {"blocks": (2 + 2 * k) * load.block} | moments
        if sizes.checkpoint.family.mlp.sum_norm is not None:  # the dense model's sums in front of a norm
            fitting["targets"] = float(tokens) / sizes.processes * r * sizes.size
        held = largest(fitting, {"heads": 2 * load.head, "logits": load.compared})
        written = sum(4.0 * k * max(shape.sizes.experts, 1) * shape.sizes.width * r for shape in sizes.shapes)
        return Cost(work, load.streams(tokens, 4) | held, disk=written, parts=cls._on_gpu(load, tokens, written))

    @staticmethod
    def _on_gpu(load: Workload, tokens: float, written: float) -> dict[str, Work]:
        """Passes of both models with sums of inputs and targets, fits of one module after another, comparisons."""
        from darwinlm.steps.refit.projection_fit import RIDGES
        from darwinlm.steps.refit.refit import STRENGTHS

        sizes, k, r = load.sizes, load.sizes.kept, float(load.sizes.width)
        held_out, own = load.settings(TextSettings).validation_tokens, tokens / load.sizes.processes
        # The smaller model's modules are run for their inputs, and again with their fits: in parts of a block's pass.
        small, calls = load.passes(tokens, k), max(own / sizes.pass_tokens, 1.0)
        passes = load.passes(tokens) + small * 1.25 + load.owning((1 + k) * sizes.blocks)
        passes += Work(launches=small.launches + calls * len(sizes.shapes) * SUM_LAUNCHES)
        fits = Work()
        for shape in sizes.shapes:
            experts, d = max(shape.sizes.experts, 1), shape.sizes.width * k
            share = max(shape.chosen, 1)
            sums = 4 * experts * (d * d + r * d)
            passes += load.multiplied(own * share * d * (d + 4 * r)) + Work(  # targets are two numbers of 16 bits
                moved=2 * sums * calls + own * share * (40 * r + 4 * d),
                sent=2 * sums if sizes.processes > 1 else 0.0,
            )
            solved = len(RIDGES) * (d**3 / 3 + 2 * r * d * d) + (len(RIDGES) + 1) * 2 * r * d * d
            fits += Work(float64=solved, moved=8 * 6 * (d * d + r * d), launches=FIT_LAUNCHES) * experts
        compared = load.passes((1 + len(STRENGTHS)) * held_out, k, heads=2) + load.owning(k * sizes.blocks)
        writing = Work(copied=written, written=written) * load.share(sizes.depth)
        # Both models, then the smaller one again; stitched projections, and those of all strengths but the whole fit.
        sent = (1 + 2 * k) * sizes.blocks * sizes.size + len(STRENGTHS) * written
        exchange = load.exchange(sent, MEETINGS)
        return {"passes": passes, **exchange, "fits": fits, "comparisons": compared, "writing": writing}
