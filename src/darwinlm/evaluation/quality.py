"""Perplexity and KL to the dense model on held-out text, all models on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.allocator import kept_memory
from darwinlm.evaluation.divergence import DenseDistribution, log_normalisers, token_losses


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
            targets = batch[:, 1:].reshape(-1)
            reference = dense(input_ids=batch, use_cache=False).logits
            distribution = DenseDistribution(reference.flatten(0, 1))
            for name, model in models.items():
                logits = reference if model is dense else model(input_ids=batch, use_cache=False).logits
                totals = log_normalisers(logits.flatten(0, 1))
                before = totals.view(len(batch), -1)[:, :-1].flatten()
                losses = token_losses(logits[:, :-1].flatten(0, 1), targets, before)
                loss[name] += float(losses.sum(dtype=torch.float64))
                kl = distribution.kl(logits.flatten(0, 1), normalisers=totals)
                divergence[name] += float(kl.sum(dtype=torch.float64))
            progress(done + 1, len(starts))
    predictions = len(tokens) * (tokens.shape[1] - 1)
    return {
        name: Quality(_perplexity(loss[name] / predictions), max(divergence[name] / tokens.numel(), 0.0), predictions)
        for name in models
    }


def _perplexity(mean_loss: float) -> float:
    """exp, capped where a float64 would overflow: such a model predicts nothing."""
    return math.exp(min(mean_loss, 700.0))
