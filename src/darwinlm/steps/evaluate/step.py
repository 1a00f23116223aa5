"""Evaluate: dense, uniform, stitched and final model on held-out text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Work
from darwinlm.steps.evaluate.item_metrics import ItemMetric
from darwinlm.steps.evaluate.metric import METRICS, Metric, TokenMetric, measured_by
from darwinlm.steps.evaluate.model_figures import (
    Measured,
)
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.refit.refit_settings import RefitSettings
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.evaluate.measured_models import Models
    from darwinlm.steps.export.step import Exported
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

FIGURES = "models.json"
WRITTEN = 200
"""Tokens that each whole model generates on a GPU: all rounds of the timing, and the continuations."""
COPIED, CONTINUED = 608, 128
"""Tokens of a list and a passage of each length, and of timed ones and continuations of a model, in plans."""


@dataclass(frozen=True, eq=False)
class Evaluate(Step[Measured]):
    """Figures of each model, on the same held-out text."""

    name = "evaluate"
    version = 9
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
        """The metrics of such models."""
        from darwinlm.model.objective.chosen import objective_of

        other = TokenMetric if objective_of(self.dense).reads else ItemMetric
        return tuple(metric for metric in METRICS.all() if not isinstance(metric, other))

    def key(self, task: Task) -> Mapping[str, object]:
        """Versions of the metrics."""
        return {"metrics": measured_by(self.extensions)}

    def work(self, task: Task) -> None:
        """Measure all models."""
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.evaluate.measured_models import measure_models
        from darwinlm.steps.evaluate.measured_readers import measure_readers

        if objective_of(self.dense).reads:
            measured = measure_readers(task, self.dense, self.models, self.exported.dtype, self.evaluation)
        else:
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
        from darwinlm.steps.evaluate.speed import SPEED_ROUNDS
        from darwinlm.steps.workload import ALONE, largest

        sizes, k, text = load.sizes, load.sizes.kept, load.settings(TextSettings)
        corrected = load.settings(RefitSettings).tokens or load.settings(RecoverySettings).tokens
        smaller, tokens = 3 if corrected else 2, text.evaluation_tokens
        prompts = (SPEED_ROUNDS + 1) * text.sequence_length
        read = tokens + COPIED * number_of_lists(tokens) + 2 * text.sequence_length * sizes.processes
        work = sizes.operations(read, 1 + smaller * k, heads=1 + smaller)
        alone = sizes.operations(ALONE * CONTINUED, 1 + k, heads=2)
        work += sizes.operations(prompts, 1 + k, heads=2) + alone
        timing = load.passing | {"logits": float(text.sequence_length * sizes.vocabulary * sizes.size)}
        small = sizes.saved_params
        if not load.on_cpu and (models := float((sizes.params + small) * sizes.size)) <= load.memory / 2:
            timing["whole models"] = models
        mapped = load.mapped(sizes.params, sizes.stored) + load.mapped(small, sizes.saved)
        passes = load.passes(read) + load.passes(read, k) * smaller + load.passes(read, 0, blocks=0, heads=1 + smaller)
        blocks = (1 + smaller * k) * sizes.blocks
        passes += load.owning(blocks) + load.loading(sizes.outside)
        exchange = load.exchange(2 * blocks * sizes.size, 2 * (1 + smaller))  # for text and for repeated passages
        whole = load.loading(float(sizes.params + small)) if "whole models" in timing else Work()
        generated = (load.written(WRITTEN, 1) + load.written(WRITTEN, 1, k)) * sizes.processes  # the first process does
        parts = {"passes": passes, **exchange, "loading": whole, "generation": generated}
        return Cost(work, largest(load.reading(read, 1 + smaller), timing), scratch=mapped, parts=parts, alone=alone)
