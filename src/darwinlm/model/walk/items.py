"""Sequences that hold several items: texts that a model reads one by one, each as if it were alone.

A sequence of tokens [t] is filled with items from its beginning. The first token of each item is marked, so the tokens
alone say where items begin, and a batch of them needs nothing beside it. Positions count from the start of each item,
by which transformers keeps their attention apart. So no token is padding, and statistics over all tokens are of items.
What is left of a sequence is the beginning of another item, which is marked as incomplete: it is read as the others
are, and nothing is compared at its end.

Tokens without marks are ordinary text. Text for language models may hold items too (`steps/text/openings.py`); there,
outputs are compared at every token.

Letters: b sequences, t tokens in each, i complete items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

INCOMPLETE = 1 << 40
"""Subtracted from the mark of an item that isn't complete."""


@dataclass(frozen=True)
class Places:
    """Where the complete items of sequences [b, t] are, in the order of the tokens.

    Attributes:
        sequence: The sequence of each item, [i].
        first: Place of its first token in the sequence, [i].
        last: Place of its last token, [i].
    """

    sequence: Int64[Tensor, " i"]
    first: Int64[Tensor, " i"]
    last: Int64[Tensor, " i"]

    def __len__(self) -> int:
        return len(self.sequence)


def sequence_of(items: Sequence[Sequence[int]], *, incomplete: Sequence[int] = ()) -> list[int]:
    """One sequence of items, and the beginning of another one."""
    tokens: list[int] = []
    for item in items:
        tokens += [-1 - item[0], *item[1:]]
    if incomplete:
        tokens += [-1 - incomplete[0] - INCOMPLETE, *incomplete[1:]]
    return tokens


def is_marked(tokens: Int64[Tensor, "*b t"]) -> bool:
    """Whether sequences hold items."""
    return tokens.numel() > 0 and bool((tokens.flatten()[0] < 0).item())


def ids(tokens: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """The tokens without marks."""
    if not bool((tokens < 0).any()):
        return tokens
    return torch.where(tokens >= 0, tokens, (-1 - tokens) % INCOMPLETE)


def positions(tokens: Int64[Tensor, "b t"]) -> Int64[Tensor, "b t"]:
    """Position of each token in its item."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.where(tokens < 0, places, 0).cummax(1).values
    return places - begins


def segments(tokens: Int64[Tensor, "b t"], separator: int) -> Int64[Tensor, "b t"]:
    """For each token whether it is behind the first separator of its item, 1 or 0."""
    is_end = (ids(tokens) == separator).long()
    before = is_end.cumsum(1) - is_end
    begins = torch.arange(tokens.shape[1], device=tokens.device) - positions(tokens)
    return (before > before.gather(1, begins)).long()


def places(tokens: Int64[Tensor, "b t"]) -> Places:
    """The complete items of sequences."""
    begins: Bool[Tensor, "b t"] = tokens < 0
    sequence, first = begins.nonzero(as_tuple=True)
    complete = tokens[sequence, first] >= -INCOMPLETE
    width = tokens.shape[1]
    flat = sequence * width + first
    # An item ends before the next one begins, or with its sequence.
    following = torch.cat([flat[1:], flat.new_full((1,), tokens.numel())])
    end = torch.minimum(following, (sequence + 1) * width)
    last = end - sequence * width - 1
    return Places(sequence[complete], first[complete], last[complete])


def counts(tokens: Int64[Tensor, "b t"]) -> Int64[Tensor, " b"]:
    """Number of complete items in each sequence."""
    return torch.bincount(places(tokens).sequence, minlength=len(tokens))
