"""Recover: train the smaller model from its refitted weights, by distillation from the original dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypedDict, cast

from pydantic import Field

from darwinlm.runtime.amounts import count, duration, nats
from darwinlm.runtime.figures import Extract, StepFigures
from darwinlm.runtime.published import short_source
from darwinlm.runtime.quantities import Count, Repeats, Share
from darwinlm.runtime.section import Section
from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Uses
from darwinlm.steps.recover.recovery_losses import RECOVERY_LOSSES, ForwardKL, NextToken, RecoveryLoss
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.text.step import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.own_text.step import Documents
    from darwinlm.steps.refit.step import Refitted
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

RECORD = "record.json"
LOGIT = 30
"""Bytes of a logit in training, with copies and gradients."""
SAVED_EVERY, CHECKPOINTS = 10_000_000, 20
"""Fewest tokens between two checkpoints of a training, and their largest number."""
SHORT_STEPS, SMALL_STEP, LONG_TRAINING = 8, 4096, 10_000_000
"""Steps of a training with few tokens, so that its rate can rise and fall; tokens in a step of up to 2M tokens; tokens
from which the embedding is trained too."""


class RecoverySettings(Section):
    """Continued training of the smaller model (the paper's post-training), by distillation or on plain text."""

    tokens: Count = Field(0, ge=0)
    """Number of training tokens: 300000, 300M or 10B. 0 skips recovery."""
    text: str | None = None
    """Source of the training text; none uses `text.source` without the documents of other purposes."""
    epochs: Repeats = Field(1, ge=1)
    """Passes over the text, of which `tokens` divided by this are read."""
    batch_tokens: Count | None = Field(None, gt=0)
    """Tokens in one step, over all processes. None takes a 256th of `tokens`, but 4096 to 32768, and an eighth of fewer
    than 32768 tokens. If `tokens` is smaller than a given batch, it is divided into up to eight steps."""
    loss: Annotated[RecoveryLoss, RECOVERY_LOSSES] = ForwardKL()
    """What distillation minimises: `forward_kl`, KL(dense ‖ model) in nats per token."""
    distillation: Share = Field(1.0, ge=0, le=1)
    """Weight of `loss`, from 0 to 1. The next-token loss has the rest: 0.5 weights both equally, and 0 needs no dense
    model."""
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of AdamW after a short warm-up; it falls to a tenth along a cosine. None takes 0.0015 times the
    root mean square of the weights, and less in proportion if the KL to the dense model on validation text is below 0.9
    before training."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every block in the backward pass: less memory, about a third more time."""
    sharding: Literal["none", "fsdp", "hsdp"] = "none"
    """Distribution over several processes: `none` keeps the whole model in each (DDP), `fsdp` shards its weights
    (FSDP2), `hsdp` shards them within each node."""

    @property
    def terms(self) -> list[tuple[float, RecoveryLoss]]:
        """The losses to minimise, with their weights."""
        weighted = (self.distillation, self.loss), (1 - self.distillation, NextToken())
        return [(weight, loss) for weight, loss in weighted if weight]

    @property
    def needs_dense(self) -> bool:
        """Whether training needs the dense model."""
        return any(loss.dense for _, loss in self.terms)

    @property
    def step_tokens(self) -> int:
        """Tokens in one step, before they are divided into sequences."""
        if self.batch_tokens is not None:
            return self.batch_tokens if self.batch_tokens <= self.tokens else self.tokens // SHORT_STEPS
        return min(
            self.tokens // SHORT_STEPS, max(SMALL_STEP, min(self.tokens // 256 // SMALL_STEP * SMALL_STEP, 32768))
        )

    @property
    def save_every(self) -> int:
        """Tokens between two checkpoints, each with an evaluation on validation text; there is one at the end too."""
        return max(SAVED_EVERY, self.tokens // CHECKPOINTS)

    @property
    def trains_embeddings(self) -> bool:
        """Whether the embedding and the output head are trained, which gained nothing up to a million tokens."""
        return self.tokens >= LONG_TRAINING


class TrainingPoint(Extract):
    """A line of the training's log: the loss, or what held-out text says."""

    tokens: int
    loss: float | None = None
    eval_kl: float | None = None


class RecoveryFigures(StepFigures):
    """The training after pruning, on text from `source`.

    `kept` is `before` if training did not improve the held-out loss.
    """

    heading: ClassVar[str] = "Recovery"
    lasting: ClassVar[bool] = False

    source: str | None
    steps: int
    tokens: int
    seconds: float
    processes: int = 1
    sharded: bool = False
    kept: Literal["trained", "before"] = "trained"
    log: tuple[TrainingPoint, ...] = ()

    @property
    def label(self) -> str:
        """The model went through recovery."""
        return "recovery"

    def account(self) -> tuple[str, ...]:
        """The amount of training, and what held-out text says of it."""
        trained = (
            f"The model was trained on {self.tokens:,} tokens of {short_source(self.source)} in {self.steps:,} steps, "
            f"{duration(self.seconds)}."
        )
        if self.kept == "before":
            trained += " The loss on held-out text did not fall, so the weights from before were kept."
        points = [
            f"{nats(point.eval_kl)} after {count(point.tokens)} tokens"
            for point in self.log
            if point.eval_kl is not None
        ]
        return (trained, f"KL on held-out text: {', '.join(points)}.") if points else (trained,)

    def card(self) -> str:
        """The amount of training, unless nothing was kept of it."""
        if self.kept == "before":
            return ""
        return f"The smaller model was then trained on {self.tokens:,} tokens of {short_source(self.source)}."

    def expectation(self) -> str:
        """What training gave back, and what it didn't."""
        if self.kept == "before":
            return (
                f"Training on {self.tokens:,} tokens after pruning did not help on held-out text, so the weights from "
                "before it were kept. Abilities that pruning removed, facts above all, are gone."
            )
        return (
            f"It was trained on {self.tokens:,} tokens after pruning. Facts and other abilities that this text does "
            "not teach have not returned."
        )


class TrainingRecord(TypedDict, total=False):
    """Record of a training.

    Attributes:
        seconds: Time of all steps, also of processes that were interrupted.
        processes: Number of processes that shared the work.
        sharded: Whether they shared the weights.
        kept: Which weights were kept: the trained ones, or those before training.
        log: Losses, and figures on held-out text, by step.
    """

    steps: int
    tokens: int
    seconds: float
    processes: int
    sharded: bool
    kept: Literal["trained", "before"]
    log: list[dict[str, int | float]]


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
    version = 11
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
    start: Stitched | Refitted
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

        run_recovery(task, self)

    def read(self, task: Task) -> Recovered:
        """The trained model."""
        from darwinlm.model.families.checkpoint import Checkpoint
        from darwinlm.runtime.artifact import read_record
        from darwinlm.steps.recover.recovery_run import remove_scratch

        remove_scratch(task.context)
        checkpoint = Checkpoint.open(task.folder / "model")
        record = cast("TrainingRecord", read_record(task.folder / RECORD))
        return Recovered(checkpoint, task.stage.digest, record)

    def figures(self, task: Task, result: Recovered) -> RecoveryFigures:
        """From the record of the training."""
        source = task.settings(RecoverySettings).text or task.settings(TextSettings).source
        return RecoveryFigures.of_record(result.record, source=source)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Training of the smaller model, the dense one beside it, and evaluations. None without training."""
        from darwinlm.runtime import parallel
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
            held["dense model"] = (sizes.blocks / shards + sizes.outside) * sizes.size
        return Cost(work, held)
