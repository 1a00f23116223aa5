"""The recovery section: training after pruning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.quantities import Count, Minutes, Share


class RecoverySettings(Section):
    """Continued training of the smaller model (the paper's post-training), by distillation or on plain text."""

    tokens: Count = Field(0, ge=0)
    """Number of training tokens: 300000, 300M or 10B. 0 skips recovery."""
    minutes: Minutes | None = Field(None, gt=0)
    """Time limit of the training (30, 30m, 1h, 90s); the learning rate falls earlier, to end with it."""
    text: str | None = None
    """Source of the training text; none uses `text.source` without the documents of other purposes."""
    skip_tokens: Count = Field(0, ge=0)
    """Number of tokens to skip at the beginning of the text, for example those of an earlier training."""
    epochs: int = Field(1, ge=1)
    """Maximum number of passes over the text."""
    sequence_length: int | None = Field(None, ge=8)
    """Tokens in one sequence; none uses `text.sequence_length`."""
    batch_tokens: Count = Field(32768, gt=0)
    """Tokens in one step of all processes; fewer `tokens` are divided into up to eight smaller steps."""
    micro_tokens: Count | None = Field(None, gt=0)
    """Maximum number of tokens in a micro-batch of one process; none uses `compute.batch_tokens`."""
    distillation: float = Field(1.0, ge=0)
    """Weight of the forward KL from the dense model, T² KL(dense ‖ model) in nats per token."""
    cross_entropy: float = Field(0.0, ge=0)
    """Weight of the next-token loss. With `distillation=0` no dense model is needed."""
    temperature: float = Field(1.0, gt=0)
    """Temperature T of both distributions in the distillation."""
    top_k: int | None = Field(None, ge=1)
    """Number of the dense model's largest logits to use, with the rest merged into one; none uses all."""
    teacher_cache: str | None = None
    """Folder for the `top_k` log-probabilities of the dense model, so that it reads a text once for all epochs, seeds
    and smaller models. Each takes 6 bytes, or 4 if the vocabulary has at most 65,536 tokens."""
    logit_chunk: int = Field(1024, gt=0)
    """Tokens whose logits are in memory at once."""
    learning_rate: float = Field(4e-4, gt=0)
    """Learning rate of AdamW after the warm-up."""
    min_rate: Share = Field(0.1, ge=0, le=1)
    """Final learning rate as a share of `learning_rate`."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Learning rate after the warm-up: `cosine` decay; `wsd`, constant and then a decay in the last `decay`;
    `constant`."""
    warmup: Share = Field(0.02, ge=0, lt=1)
    """Share of warm-up steps. If it isn't 0, there are at least ten or, in a short training, a quarter of the steps."""
    decay: Share = Field(0.2, gt=0, lt=1)
    """Share of the steps in which `wsd` decays."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW, for matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Betas of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum norm of gradients; longer ones are clipped."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Element type of forward and backward passes, with `auto` as in `compute.dtype`. Trained weights are always
    float32."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every block in the backward pass: less memory, about a third more time."""
    embeddings: bool = True
    """Whether to train the embedding and the head too, which pruning doesn't change."""
    lora_rank: int = Field(0, ge=0)
    """Rank of low-rank adapters that are trained on every projection and then merged; 0 trains all weights."""
    lora_alpha: float = Field(16.0, gt=0)
    """Scale of the adapters: alpha / rank."""
    sharding: Literal["none", "fsdp"] = "none"
    """Distribution over several processes: `none` keeps the whole model in each (DDP), `fsdp` shards its weights
    (FSDP2, without adapters)."""
    evaluate_every: Count = Field(1_000_000, gt=0)
    """Tokens between two evaluations on validation text."""
    save_every: Count = Field(10_000_000, gt=0)
    """Tokens between two checkpoints; one is also written at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints to keep during training."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of the log."""
    log_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Additional logs; TensorBoard's files are written to the stage's folder."""
    divergence: float = Field(2.0, gt=1)
    """Ratio of the smoothed loss to its lowest value at which training stops; the last good checkpoint is kept."""
    seed: int = 0
    """Seed of the order of the text and of new weights."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> RecoverySettings:
        if self.tokens and self.distillation == 0 and self.cross_entropy == 0:
            raise ValueError("distillation and cross_entropy are both 0: give one of them a weight")
        if self.teacher_cache is not None and self.top_k is None:
            raise ValueError("teacher_cache stores the top_k most likely tokens: set top_k, for example 64")
        if self.teacher_cache is not None and self.distillation == 0:
            raise ValueError("teacher_cache is only used by distillation: set distillation above 0")
        return self
