"""Evaluate: dense, uniform, stitched and final model on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import field_validator

from darwinlm.runtime.figures import Figures, ModelNames, Passage
from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task
from darwinlm.runtime.tables import Table
from darwinlm.steps.evaluate.metric import METRICS, Metric, SizeMetric, measured_by, size_metrics
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
from darwinlm.steps.recover.step import RecoverySettings
from darwinlm.steps.refit.step import RefitSettings
from darwinlm.steps.text.step import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.evaluate.measured_models import Models
    from darwinlm.steps.export.step import Exported
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

FIGURES = "models.json"
DENSE, UNIFORM, STITCHED, BEFORE, RECOVERED = "dense", "uniform", "stitched", "before", "recovered"
"""Names of measured models: `before` is what `darwinlm recover` was given. A corrected model goes by the name that the
pipeline gives it."""
COPYING = "Copying from the context"
COPIED_MEANS = "Copied: the model is given words or text twice; the share of the repeated tokens that it predicts."
COPIED, CONTINUED = 608, 128
"""Tokens of a list and a passage of each length, and of timed ones and continuations of a model, in plans."""


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


@dataclass(frozen=True, eq=False)
class Evaluate(Step[Measured]):
    """Figures of each model, on the same held-out text."""

    name = "evaluate"
    version = 7
    writes = "figures of every model"
    text_use = (("evaluation", "the figures of this page"),)
    arithmetic = True
    together = True

    dense: Checkpoint
    models: Models
    exported: Exported
    evaluation: TokenSequences

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Evaluation text, on which no choice depends."""
        return {"evaluation": recipe.section(TextSettings).evaluation_tokens}

    @property
    def extensions(self) -> tuple[Metric, ...]:
        """The metrics."""
        return tuple(METRICS.all())

    def key(self, task: Task) -> Mapping[str, object]:
        """Versions of the metrics."""
        return {"metrics": measured_by(self.extensions)}

    def work(self, task: Task) -> None:
        """Measure all models."""
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.evaluate.measured_models import measure_models

        measured = measure_models(task, self.dense, self.models, self.exported.dtype, self.evaluation.tokens)
        figures = {key: model.as_json() for key, model in measured.items()}
        parallel.in_main(write_json, task.folder / FIGURES, figures)

    def read(self, task: Task) -> Measured:
        """The figures by model."""
        from darwinlm.runtime.artifact import read_as

        return read_as(task.folder / FIGURES, Measured)

    @classmethod
    def cost(cls, load: Workload) -> Cost:
        """All models on evaluation text and repeated passages; then speeds and continuations of two whole ones."""
        from darwinlm.steps.evaluate.looking_back import number_of_lists
        from darwinlm.steps.workload import ALONE, largest

        sizes, k, text = load.sizes, load.sizes.kept, load.settings(TextSettings)
        corrected = load.settings(RefitSettings).tokens or load.settings(RecoverySettings).tokens
        smaller, tokens = 3 if corrected else 2, text.evaluation_tokens
        read = tokens + COPIED * number_of_lists(tokens) + 2 * text.sequence_length * sizes.processes
        work = sizes.operations(read, 1 + smaller * k, heads=1 + smaller)
        work += sizes.operations(ALONE * CONTINUED, 1 + k, heads=2)
        timing = load.passing | {"logits": float(text.sequence_length * sizes.vocabulary * sizes.size)}
        small = sizes.kept_blocks[1] + sizes.outside
        if not load.on_cpu and (models := float((sizes.params + small) * sizes.size)) <= load.memory / 2:
            timing["whole models"] = models
        return Cost(work, largest(load.reading(read, 1 + smaller), timing))
