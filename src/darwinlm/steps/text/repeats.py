"""Repeated passages: a share of a sequence's tokens repeats earlier passages of the same sequence.

Plain text rarely repeats itself, so a model that ignores its context loses little on it. Here passages are repeated at
once or later. Half of them are the sequence's text. At the first occurrence, a quarter are shuffled, and a quarter are
replaced with random tokens of the vocabulary, half of these at the beginning of the sequence. Without them, training
may lose the copying of rare words where no text precedes them (notebook, "Lists of rare words"). Passages are only
copied within a sequence. So each document keeps a single purpose, and any prefix of the text has the same mix.

Letters: B sequences, T tokens in a sequence.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

SHORTEST = 8
"""Tokens of the shortest repeated passage, unless the share is smaller."""

LONGEST = 128
"""Tokens of the longest repeated passage."""


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Tokens of the vocabulary that are neither special nor added, ascending, [n]."""
    left_out = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return np.array(sorted({*tokenizer.get_vocab().values()} - left_out), dtype=np.int64)


def with_repeats(tokens: torch.Tensor, *, share: float, seed: int, ordinary: NDArray[np.int64]) -> torch.Tensor:
    """Sequences in which a share of the tokens, from 0 to below 1, repeats earlier passages, int64 [B, T] -> [B, T].

    Passages have 8 to 128 tokens, with a log-uniform distribution; random ones are drawn from the `ordinary` tokens,
    [n]. Text that no longer fits is dropped at the end of the sequence, and a special token at its beginning stays. The
    seed and a sequence's tokens determine its passages.
    """
    if share == 0 or not len(tokens):
        return tokens
    return torch.from_numpy(np.stack([_with_repeats(sequence, share, seed, ordinary) for sequence in tokens.numpy()]))


def _with_repeats(
    sequence: NDArray[np.int64], share: float, seed: int, ordinary: NDArray[np.int64]
) -> NDArray[np.int64]:
    digest = blake2b(sequence.astype("<i8").tobytes(), digest_size=8, key=seed.to_bytes(8, "little", signed=True))
    rng = np.random.default_rng(int.from_bytes(digest.digest(), "little"))
    length = len(sequence)
    remaining = round(share * length)
    plain = sequence[: length - remaining].copy()
    first = 0 if np.isin(sequence[0], ordinary) else 1
    begins_random = False
    repeats: list[tuple[int, slice]] = []
    while remaining:
        size = _size(rng, min(remaining, (len(plain) - 1)))
        if size == 0:
            return sequence
        place = int(rng.integers(1 + size, len(plain) + 1))
        start = place - size if rng.random() < 0.5 else int(rng.integers(1, place - size + 1))
        kind = rng.random()
        if kind < 0.125 and not begins_random:
            begins_random, start, place = True, first, first + size
        if kind < 0.25:
            plain[start : start + size] = rng.choice(ordinary, size)
        elif kind < 0.5:
            rng.shuffle(plain[start : start + size])
        repeats.append((place, slice(start, start + size)))
        remaining -= size
    pieces, done = [], 0
    for place, passage in sorted(repeats, key=lambda repeat: repeat[0]):
        pieces += [plain[done:place], plain[passage]]
        done = place
    return np.concatenate([*pieces, plain[done:]])


def _size(rng: np.random.Generator, remaining: int) -> int:
    """Number of tokens of a passage, at most `remaining`; what is left is never shorter than the shortest passage."""
    if remaining < 2 * SHORTEST:
        return remaining
    size = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(min(LONGEST, remaining) + 1))))
    return remaining if remaining - size < SHORTEST <= remaining <= LONGEST else size
