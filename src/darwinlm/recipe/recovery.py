"""The recovery section: training after pruning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.quantities import Count, Minutes, Repeats, Share, Whole


class RecoverySettings(Section):
    """Continued training of the smaller model (the paper's post-training), by distillation or on plain text."""

    tokens: Count = Field(0, ge=0)
    """Number of training tokens: 300000, 300M or 10B. 0 skips recovery."""
    minutes: Minutes | None = Field(None, gt=0)
    """Time limit of the training (30, 30m, 1h, 90s); the learning-rate schedule is shortened to end with it."""
    text: str | None = None
    """Source of the training text; none uses `text.source` without the documents of other purposes."""
    epochs: Repeats = Field(1, ge=1)
    """Maximum number of passes over the text if it has fewer tokens than `tokens`."""
    batch_tokens: Count = Field(32768, gt=0)
    """Tokens in one step, over all processes. If `tokens` is smaller, it is divided into up to eight steps."""
    distillation: Share = Field(1.0, ge=0, le=1)
    """Weight of distillation, KL(dense ‖ model) in nats per token, from 0 to 1. The next-token loss has the rest: 0.5
    weights both equally, and 0 needs no dense model."""
    teacher_cache: str | None = None
    """Folder for the 64 most likely tokens of the dense model at each position. It then reads each text once for all
    epochs, seeds and smaller models. A position takes 388 bytes, or 260 if the vocabulary has at most 65,536 tokens."""
    learning_rate: float = Field(4e-4, gt=0)
    """Learning rate of AdamW after a short warm-up; it falls to a tenth along a cosine."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every block in the backward pass: less memory, about a third more time."""
    embeddings: bool = True
    """Whether to train the embedding and the output head too; pruning doesn't change them."""
    lora_rank: Repeats = Field(0, ge=0)
    """Rank of low-rank adapters that are trained on every projection and then merged; 0 trains all weights."""
    sharding: Literal["none", "fsdp"] = "none"
    """Distribution over several processes: `none` keeps the whole model in each (DDP), `fsdp` shards its weights
    (FSDP2, without adapters)."""
    save_every: Count = Field(10_000_000, gt=0)
    """Tokens between two checkpoints, each with an evaluation on validation text; one more is written at the end."""
    log_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Additional logs; TensorBoard's files are written to the stage's folder."""
    seed: Whole = 0
    """Seed of the order of the text and of the adapters' first weights."""

    @model_validator(mode="after")
    def _cache_is_used(self) -> RecoverySettings:
        if self.teacher_cache is not None and self.distillation == 0:
            raise ValueError("teacher_cache is only used by distillation: set distillation above 0")
        return self
