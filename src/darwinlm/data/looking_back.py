"""Repeated passages: a share of a block's tokens repeats earlier passages of the same block.

Plain text rarely repeats itself, so a model that ignores its context loses little on it. Here passages are repeated at
once or later. Half of them have their tokens shuffled at the first occurrence, so that they resemble lists. Passages
are only copied within a block. So each document keeps a single purpose, and any prefix of the text has the same mix.

Letters: B blocks, T tokens in a block.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHORTEST = 8
"""Tokens of the shortest repeated passage, if the share allows as many."""

LONGEST = 128
"""Tokens of the longest repeated passage."""


def with_repeats(tokens: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Blocks in which a share of the tokens repeats earlier passages.

    Passages have 8 to 128 tokens, with a log-uniform distribution. Half of them are repeated at once, the others
    anywhere later. Half of all passages are shuffled at their first occurrence. Text that no longer fits is dropped at
    the end of the block. The first token of a block stays.

    Args:
        tokens: Blocks of text, int64 [B, T].
        share: Share of each block's tokens that repeats, from 0 to below 1.
        seed: Seed; together with a block's tokens it determines the repeated passages and their positions.

    Returns:
        New blocks, int64 [B, T]; the given ones if the share is 0.
    """
    if share == 0:
        return tokens
    blocks = tokens.numpy()
    return torch.from_numpy(
        np.stack([_with_repeats(block, share, seed) for block in blocks]) if len(blocks) else blocks
    )


def _with_repeats(block: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    digest = blake2b(block.astype("<i8").tobytes(), digest_size=8, key=seed.to_bytes(8, "little", signed=True))
    rng = np.random.default_rng(int.from_bytes(digest.digest(), "little"))
    length = len(block)
    remaining = round(share * length)
    plain = block[: length - remaining].copy()
    repeats: list[tuple[int, slice]] = []
    while remaining:
        size = _size(rng, min(remaining, (len(plain) - 1)))
        if size == 0:
            return block
        place = int(rng.integers(1 + size, len(plain) + 1))
        start = place - size if rng.random() < 0.5 else int(rng.integers(1, place - size + 1))
        repeats.append((place, slice(start, start + size)))
        remaining -= size
        if rng.random() < 0.5:
            rng.shuffle(plain[start : start + size])
    pieces, done = [], 0
    for place, passage in sorted(repeats, key=lambda each: each[0]):
        pieces += [plain[done:place], plain[passage]]
        done = place
    return np.concatenate([*pieces, plain[done:]])


def _size(rng: np.random.Generator, most: int) -> int:
    """Number of tokens of a passage, at most `most`; the remainder is never shorter than the shortest passage."""
    if most < 2 * SHORTEST:
        return most
    size = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(min(LONGEST, most) + 1))))
    return most if most - size < SHORTEST <= most <= LONGEST else size
