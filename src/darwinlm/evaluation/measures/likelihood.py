"""Log-likelihood of continuations, as lm-evaluation-harness computes it.

Letters: s continuations, t tokens of the longest with its prompt, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch

from darwinlm.runtime import parallel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 2048
"""Tokens in one forward pass, unless a single text is longer: their logits are there at once."""

Continued = tuple[Sequence[int], Sequence[int]]
"""Tokens of a prompt, at least one, and of its continuation."""


@torch.no_grad()
def log_likelihoods(model: PreTrainedModel, texts: Sequence[Continued]) -> list[float]:
    """Log-likelihood of each continuation after its prompt, in nats; processes share the texts."""
    own = parallel.portion(texts)
    values: list[float] = []
    while len(values) < len(own):
        batch = [own[len(values)]]
        longest = len(batch[0][0]) + len(batch[0][1])
        for prompt, continuation in own[len(values) + 1 :]:
            longest = max(longest, len(prompt) + len(continuation))
            if longest * (len(batch) + 1) > TOKENS:
                break
            batch.append((prompt, continuation))
        values += _of_batch(model, batch)
    return [*chain.from_iterable(parallel.gather(values))]


def _of_batch(model: PreTrainedModel, batch: Sequence[Continued]) -> list[float]:
    rows = [[*prompt, *continuation] for prompt, continuation in batch]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits = model(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
    ).logits  # [s, t, v]
    sums = []
    for row, (prompt, continuation), of_row in zip(rows, batch, logits, strict=True):
        expected = torch.tensor(row[len(prompt) :], device=of_row.device)
        log_p = of_row[len(prompt) - 1 : len(row) - 1].float().log_softmax(-1)
        sums.append(float(log_p.gather(1, expected[:, None]).sum()))
        assert len(expected) == len(continuation), "the row ends with its continuation"
    return sums
