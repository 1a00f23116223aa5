"""Perplexity and KL to the dense model on held-out text, all models on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import DenseDistribution, log_normalisers, token_losses
from darwinlm.malloc import kept_memory


@dataclass(frozen=True)
class Quality:
    """What was measured on held-out text.

    Attributes:
        perplexity: exp of the mean cross-entropy of a token given those before it in its block.
        kl: mean KL(dense ‖ model) in nats per token.
        tokens: predictions that the perplexity is the mean of.
    """

    perplexity: float
    kl: float
    tokens: int


@torch.no_grad()
def measure_quality(
    dense: Any,
    models: Mapping[str, Any],
    tokens: Tensor,
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Quality]:
    """Measure several models side by side.

    Args:
        dense: the model that the others are compared with.
        models: by name; the dense one may be among them.
        tokens: [n, t] held-out text.
        batch_tokens: tokens in one forward pass.
        progress: called with finished and total batches.
    """
    rows = max(1, batch_tokens // tokens.shape[1])
    loss = dict.fromkeys(models, 0.0)
    divergence = dict.fromkeys(models, 0.0)
    starts = range(0, len(tokens), rows)
    with kept_memory(dense.device):
        for done, start in enumerate(starts):
            batch = tokens[start : start + rows].to(dense.device)
            for name, (lost, apart) in _measure_batch(dense, models, batch).items():
                loss[name] += lost
                divergence[name] += apart
            progress(done + 1, len(starts))
    predictions = len(tokens) * (tokens.shape[1] - 1)
    return {
        name: Quality(_perplexity(loss[name] / predictions), max(divergence[name] / tokens.numel(), 0.0), predictions)
        for name in models
    }


def _measure_batch(dense: Any, models: Mapping[str, Any], batch: Tensor) -> dict[str, tuple[float, float]]:
    """Sums of cross-entropy and of KL over a batch; on its own, so that no logits outlive their batch."""
    # What follows a block's last token isn't known; its row is left out below: cutting it off here would copy.
    following = batch.roll(-1, 1).flatten()
    reference = dense(input_ids=batch, use_cache=False).logits.flatten(0, 1)
    distribution = DenseDistribution(reference)
    sums = {}
    for name, model in models.items():
        logits = reference if model is dense else model(input_ids=batch, use_cache=False).logits.flatten(0, 1)
        totals = log_normalisers(logits)
        losses = token_losses(logits, following, totals).view(len(batch), -1)[:, :-1]
        divergence = distribution.kl(logits, normalisers=totals)
        sums[name] = (float(losses.sum(dtype=torch.float64)), float(divergence.sum(dtype=torch.float64)))
        del logits
    return sums


def _perplexity(mean_loss: float) -> float:
    """exp, capped where a float64 would overflow: such a model predicts nothing."""
    return math.exp(min(mean_loss, 700.0))
