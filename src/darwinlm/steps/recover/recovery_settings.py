"""Settings of the recovery."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from darwinlm.runtime.quantities import Count, Repeats, Share
from darwinlm.runtime.section import Section
from darwinlm.steps.recover.recovery_losses import RECOVERY_LOSSES, ForwardKL, NextToken, RecoveryLoss

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
    before training. A model that reads gets at most the rate at which its first update could lower the loss to 0."""
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
