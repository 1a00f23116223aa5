"""Batches of sequences of different lengths that are padded on the right: neighbours in length go together.

A pass costs as much for padding as for text. Sorted by length, a batch is as wide as its own longest sequence, and not
as the longest of all.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def batches_by_length(lengths: Tensor, batch_tokens: int) -> Iterator[tuple[Tensor, int]]:
    """Places of the sequences of each batch, [b] int64, and the width of the batch; the longest sequences come first.

    `lengths` is [n] int64, each at least 1. A batch has at most `batch_tokens` tokens with its padding, unless a
    single sequence is longer.
    """
    order = lengths.argsort(descending=True, stable=True)
    while len(order):
        width = int(lengths[order[0]])
        count = max(1, batch_tokens // width)
        yield order[:count], width
        order = order[count:]


def lengths_of(real: Tensor) -> Tensor:
    """Number of columns up to the last true one of each row, at least 1; [n, t] bool -> [n] int64."""
    places = torch.arange(1, real.shape[1] + 1, device=real.device)
    return (real * places).amax(1).clamp(min=1)
