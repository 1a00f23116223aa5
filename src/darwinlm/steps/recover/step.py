"""Recover: train the smaller model from its refitted weights, by distillation from the original dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Uses, Work
from darwinlm.steps.recover.recovery_figures import RecoveryFigures, TrainingRecord
from darwinlm.steps.recover.recovery_settings import (
    RecoverySettings,
)
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.own_text.documents import Documents
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

UPDATE_LAUNCHES = 200
"""Kernels of an update of the fused optimizer."""
LOGIT = 30
"""Bytes of a logit in training, with copies and gradients."""


@dataclass(frozen=True)
class Recovered(Stitched):
    """The trained model, with the record of its training."""

    record: TrainingRecord = field(default_factory=TrainingRecord)


@dataclass(frozen=True, eq=False)
class Recover(Step[Recovered]):
    """The model after training. Its key depends neither on the number of processes nor on the division of work.

    Attributes:
        dense: The dense model with the tokens of the smaller one.
        teacher: The dense model from which it learns.
        start: The model to train.
        validation: Text for the held-out loss.
        reserved: Hashes of documents that aren't trained on.
        own_text: Text that the dense model wrote for the training, if it is one of the sources.
    """

    name = "recover"
    title = "recovery"
    version = 12
    writes = "the trained model, and the record of the training"
    Settings = RecoverySettings
    section = "recovery"
    Figures = RecoveryFigures
    text_use = (("validation", "held-out loss while training"),)
    settings = (
        Uses(RecoverySettings, ignoring=("sharding",)),
        Uses(TextSettings, only=("sequence_length", "looking_back", "seed")),
    )
    arithmetic = True
    together = True
    ends_early = True

    dense: Checkpoint
    teacher: Checkpoint
    start: Stitched
    validation: TokenSequences
    reserved: tuple[str, ...]
    own_text: Documents | None

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Validation text; the text to train on is packed apart from that of other purposes."""
        return {"validation": recipe.section(TextSettings).validation_tokens}

    def key(self, task: Task) -> Mapping[str, object]:
        """Identity of the text."""
        from darwinlm.steps.text.text_source import fingerprint, given_source

        source = task.settings(RecoverySettings).text or given_source(task.settings(TextSettings))
        return {"text": fingerprint(source)}

    def work(self, task: Task) -> None:
        """Train."""
        from darwinlm.steps.recover.recovery_run import run_recovery

        run_recovery(
            task,
            self.start,
            self.dense,
            self.teacher,
            self.validation,
            reserved=self.reserved,
            own_text=self.own_text,
            seconds=task.left(self.name),
        )

    def read(self, task: Task) -> Recovered:
        """The trained model."""
        from darwinlm.model.families.checkpoint import Checkpoint
        from darwinlm.runtime.artifact import read_record
        from darwinlm.steps.recover.recovery_run import RECORD, remove_scratch

        remove_scratch(task.context)
        checkpoint = Checkpoint.open(task.folder / "model")
        record = cast("TrainingRecord", read_record(task.folder / RECORD))
        return Recovered(checkpoint, task.stage.digest, record)

    def figures(self, task: Task, result: Recovered) -> RecoveryFigures:
        """From the record of the training."""
        from darwinlm.model.objective.chosen import objective_of

        source = task.settings(RecoverySettings).text or task.settings(TextSettings).source
        return RecoveryFigures.of_record({**result.record, "unit": objective_of(self.dense).unit}, source=source)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Training of the smaller model, the dense one beside it, and evaluations. None without training."""
        from darwinlm.runtime import parallel
        from darwinlm.steps.recover.checkpoints import KEPT
        from darwinlm.steps.recover.trained_model import logit_tokens
        from darwinlm.steps.workload import SAVED

        sizes, k, settings = load.sizes, load.sizes.kept, load.settings(RecoverySettings)
        if not settings.tokens:
            return None
        on_a_node = parallel.local_size() if parallel.size() > 1 else sizes.processes
        shards = {"none": 1, "fsdp": sizes.processes, "hsdp": on_a_node}[settings.sharding]
        small = k * sizes.blocks + sizes.outside
        head, again = settings.trains_embeddings, settings.gradient_checkpointing
        weights = small if head else k * sizes.blocks
        held_out = load.settings(TextSettings).validation_tokens * (2 + settings.tokens // settings.save_every)
        work = sizes.operations(settings.tokens, k, blocks=3 + again, heads=2 + head)
        work += sizes.operations(held_out, k, heads=1)
        passes = load.passes(settings.tokens, k, blocks=3 + again, heads=2 + head) + load.passes(held_out, k, heads=1)
        micro = float(min(sizes.pass_tokens, settings.step_tokens))
        inside = k * SAVED * sizes.channels * sizes.size * (1 if again else sizes.depth)
        held = {
            "weights, gradients and moments": (4 * small + 12 * weights) / shards,
            "activations": micro * (inside + again * sizes.depth * 4.0 * sizes.width + sizes.channels * sizes.size),
            "logits": min(logit_tokens(sizes.vocabulary), micro) * sizes.vocabulary * LOGIT,
        }
        if sizes.size == 2:
            held["weights in bfloat16"] = 2 * (k * (sizes.blocks if shards == 1 else sizes.block) + sizes.outside)
        if settings.needs_dense:
            work += sizes.operations(settings.tokens, heads=2) + sizes.operations(held_out, heads=1)
            passes += load.passes(settings.tokens, heads=2) + load.passes(held_out, heads=1)
            held["dense model"] = (sizes.blocks / shards + sizes.outside) * sizes.size
        checkpoint = 12.0 * weights
        text = settings.tokens / settings.epochs * (2 if sizes.vocabulary <= 1 << 16 else 4)
        while_training = (KEPT + 1) * checkpoint + text
        steps = settings.tokens / settings.step_tokens
        updates = Work(moved=32 * weights / shards, launches=UPDATE_LAUNCHES) * steps
        if sizes.processes > 1:  # gradients, and sharded weights twice
            passes += Work(sent=4.0 * weights * steps) + Work(sent=2 * sizes.size * small * steps * (shards > 1))
        saved = Work(written=checkpoint * settings.tokens / settings.save_every)
        parts = {"passes": passes, "updates": updates, "checkpoints": saved}
        return Cost(work, held, disk=sizes.saved_params * sizes.stored, scratch=while_training, parts=parts)
