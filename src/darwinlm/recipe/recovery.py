"""The recovery section: training after pruning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.quantities import Count, Share


class RecoverySettings(Section):
    """Continued training of the smaller model (the paper's post-training), by distillation or on plain text."""

    tokens: Count = Field(0, ge=0)
    """Tokens that are trained on: 300000, 300M or 10B. 0 leaves recovery out."""
    text: str | None = None
    """Source of the training text; none takes `text.source`, without the documents that serve another purpose."""
    skip_tokens: Count = Field(0, ge=0)
    """Tokens of the text that are passed over first, such as those that were trained on before."""
    epochs: int = Field(1, ge=1)
    """How often the text may be gone through to get that many tokens."""
    sequence_length: int | None = Field(None, ge=8)
    """Tokens in one sequence; none takes `text.sequence_length`."""
    batch_tokens: Count = Field(32768, gt=0)
    """Tokens in one step, over all processes; fewer `tokens` than that are cut into up to eight smaller steps."""
    micro_tokens: Count | None = Field(None, gt=0)
    """Most tokens that one process runs at once; none takes `compute.batch_tokens`. Gradients add up over a step."""
    distillation: float = Field(1.0, ge=0)
    """Weight of the forward KL from the dense model, T² KL(dense ‖ model) in nats per token."""
    cross_entropy: float = Field(0.0, ge=0)
    """Weight of the loss of the next token. With `distillation=0` no dense model is needed."""
    temperature: float = Field(1.0, gt=0)
    """T of both distributions in the distillation."""
    top_k: int | None = Field(None, ge=1)
    """Use only so many of the dense model's logits, the rest as one more; none uses all."""
    teacher_cache: str | None = None
    """Folder in which the `top_k` log-probabilities of the dense model are kept, 6 bytes each or 4 where its vocabulary
    has no more than 65,536 tokens, so that it passes over a text once for all epochs, seeds and smaller models."""
    logit_chunk: int = Field(1024, gt=0)
    """Tokens whose logits exist at once."""
    learning_rate: float = Field(4e-4, gt=0)
    """Of AdamW after the warm-up."""
    min_rate: Share = Field(0.1, ge=0, le=1)
    """The learning rate at the end, as a share of `learning_rate`."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: `cosine` down to the end; `wsd` stays, then falls in the last `decay`; `constant` stays."""
    warmup: Share = Field(0.02, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; where it isn't 0, in no fewer than ten, or a quarter of a
    short training."""
    decay: Share = Field(0.2, gt=0, lt=1)
    """Share of the steps in which `wsd` falls."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW, on matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Longer gradients are cut to this."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of forward and backward passes, `auto` as in `compute.dtype`; the weights that are trained are float32 in any
    case."""
    gradient_checkpointing: bool = False
    """Compute every block's inside again on the way back: less memory, about a third more time."""
    embeddings: bool = True
    """Train the embedding and the head too, which pruning leaves as they were."""
    lora_rank: int = Field(0, ge=0)
    """Train low-rank adapters of this rank on every projection and merge them; 0 trains all weights."""
    lora_alpha: float = Field(16.0, gt=0)
    """Scale of the adapters: alpha / rank."""
    sharding: Literal["none", "fsdp"] = "none"
    """Of several processes: `none` holds the model in each (DDP), `fsdp` deals its weights out (FSDP2, no
    adapters). A single process has all of them either way."""
    evaluate_every: Count = Field(1_000_000, gt=0)
    """Tokens between two evaluations on validation text."""
    save_every: Count = Field(10_000_000, gt=0)
    """Tokens between two checkpoints; one is also written at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Checkpoints that are kept while training."""
    log_every: int = Field(10, ge=1)
    """Steps between two lines of the log."""
    log_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where else the log goes; TensorBoard's files lie in the stage's folder."""
    divergence: float = Field(2.0, gt=1)
    """Stop when the smoothed loss is this many times its lowest value; the last good checkpoint stays."""
    seed: int = 0
    """Of the order of the text and of new weights."""

    @model_validator(mode="after")
    def _something_is_learned(self) -> RecoverySettings:
        if self.tokens and self.distillation == 0 and self.cross_entropy == 0:
            raise ValueError("distillation and cross_entropy are both 0: give one of them a weight")
        if self.teacher_cache is not None and self.top_k is None:
            raise ValueError("teacher_cache stores the top_k likeliest tokens: set top_k, such as 64")
        if self.teacher_cache is not None and self.distillation == 0:
            raise ValueError("teacher_cache stores what distillation needs: set distillation above 0")
        return self
