"""Perplexity and KL to the dense model on held-out text, all models on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import DenseDistribution, log_normalisers, token_losses
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import NumericsError
from darwinlm.runtime.memory import kept_memory

FIRST_POSITIONS = 64
"""End of the first range of positions; each further range ends at twice the previous end."""


@dataclass(frozen=True)
class Quality:
    """Figures on held-out text.

    Attributes:
        perplexity: Exponential of the mean cross-entropy of a token, given the earlier ones in its block.
        kl: Mean KL(dense ‖ model) in nats per token.
        tokens: Number of predictions.
        kl_seen: Mean KL where the next token occurred earlier in the block; None without such tokens.
        kl_new: Mean KL where it did not; None without such tokens.
        seen: Share of next tokens that occurred earlier in the block.
        kl_by_position: Entries (position, KL): mean KL from the previous entry's position, or the beginning of the
            block, up to this position; positions double from 64 on.
    """

    perplexity: float
    kl: float
    tokens: int
    kl_seen: float | None = None
    kl_new: float | None = None
    seen: float = 0.0
    kl_by_position: tuple[tuple[int, float], ...] = ()


@torch.no_grad()
def measure_quality(
    dense: Any,
    models: Mapping[str, Any],
    tokens: Tensor,
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    late: Callable[[], bool] = lambda: False,
) -> dict[str, Quality]:
    """Measure several models on the same tokens; processes share the sequences.

    `tokens` is [n, t] held-out text. The dense model, the reference of the KL, may be among the models. `late` tells
    whether this process stops after this batch. Raises NumericsError if a loss isn't finite.
    """
    tokens = tokens[parallel.place() :: parallel.size()]
    sequences = max(1, batch_tokens // tokens.shape[1])
    sums = torch.zeros(len(models), 3 + tokens.shape[1], dtype=torch.float64)
    n_seen, measured = 0, 0
    starts = range(0, len(tokens), sequences)
    with kept_memory(dense.device):
        for done, start in enumerate(starts):
            batch = tokens[start : start + sequences].to(dense.device)
            seen = seen_before(batch)
            n_seen += int(seen.sum())
            sums += _measure_batch(dense, models, batch, seen)
            measured += len(batch)
            progress(done + 1, len(starts))
            if late():
                break
    measured, n_seen = parallel.all_reduce(torch.tensor([measured, n_seen])).tolist()
    predictions = measured * (tokens.shape[1] - 1)
    sums = parallel.all_reduce(sums)
    for name, total in zip(models, sums, strict=True):
        if not bool(total.isfinite().all()):
            raise NumericsError(f"the losses of {name} aren't finite (NaN or infinity): try float32, or another model")
    by_model = zip(models, sums, strict=True)
    return {name: _quality(total, measured, predictions, n_seen) for name, total in by_model}


def seen_before(tokens: Tensor) -> Tensor:
    """Whether the next token already occurred in the block, [n, t] -> [n, t - 1] bool."""
    n, t = tokens.shape
    # Sorted by token and position, all but the first of equal tokens have occurred before.
    order = tokens.argsort(dim=1, stable=True)
    ordered = tokens.gather(1, order)
    again = torch.zeros(n, t, dtype=torch.bool, device=tokens.device)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter_(1, order, again)[:, 1:]


def _quality(sums: Tensor, sequences: int, predictions: int, n_seen: int) -> Quality:
    """The figures, from the sums of `_measure_batch` over all batches."""
    loss, kl_seen, kl_new = sums[:3].tolist()
    by_position = sums[3:] / sequences
    return Quality(
        math.exp(min(loss / predictions, 700.0)),  # without overflow
        max(float(by_position.mean()), 0.0),
        predictions,
        max(kl_seen / n_seen, 0.0) if n_seen else None,
        max(kl_new / (predictions - n_seen), 0.0) if n_seen < predictions else None,
        n_seen / predictions,
        tuple((end, max(float(by_position[begin:end].mean()), 0.0)) for begin, end in _ranges(len(by_position))),
    )


def _ranges(length: int) -> list[tuple[int, int]]:
    """Ranges 0 to 64, 64 to 128, 128 to 256 and so on up to the length."""
    ends = [0]
    while ends[-1] < length:
        ends.append(min(max(2 * ends[-1], FIRST_POSITIONS), length))
    return list(pairwise(ends))


def _measure_batch(dense: Any, models: Mapping[str, Any], batch: Tensor, seen: Tensor) -> Tensor:
    """Sums over a batch, float64 [3 + t] for each model.

    They are cross-entropy, KL for seen and for new next tokens, and KL by position.

    A separate function, so that logits are released after each batch.
    """
    # The last position has no next token. It is skipped below, because slicing here would copy.
    following = batch.roll(-1, 1).flatten()
    reference = dense(input_ids=batch, use_cache=False).logits.flatten(0, 1)
    distribution = DenseDistribution(reference)
    sums = torch.zeros(len(models), 3 + batch.shape[1], dtype=torch.float64)
    for row, model in zip(sums, models.values(), strict=True):
        logits = reference if model is dense else model(input_ids=batch, use_cache=False).logits.flatten(0, 1)
        totals = log_normalisers(logits)
        losses = token_losses(logits, following, totals).view(len(batch), -1)[:, :-1]
        divergence = distribution.kl(logits, normalisers=totals)
        divergence = divergence.view(len(batch), -1)
        of_next = divergence[:, :-1]
        parts = [part.sum(dtype=torch.float64) for part in (losses, of_next[seen], of_next[~seen])]
        row.copy_(torch.cat([torch.stack(parts), divergence.sum(0, dtype=torch.float64)]))
        del logits
    return sums
