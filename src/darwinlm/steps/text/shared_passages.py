"""Passages that two texts share: near copies of a document have another hash, and most of its passages.

Letters: n tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from darwinlm.model.walk.items import ids
from darwinlm.steps.text.sequences import TokenSequences

PASSAGE = 13
"""Tokens of a passage that two texts hardly share by chance, as in the contamination checks of GPT-3 (our choice)."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number, of which powers spread hashes over 64 bits."""


def hashes(tokens: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hashes of all passages of some tokens, [n] -> [n - PASSAGE + 1]."""
    count = max(len(tokens) - PASSAGE + 1, 0)
    found = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(PASSAGE):
            found = found * FACTOR + (tokens[place : place + count].astype(np.uint64) + np.uint64(1))
    return found


def passages_of(parts: Iterable[TokenSequences]) -> NDArray[np.uint64]:
    """Hashes of all passages of some text, sorted."""
    found = [hashes(sequence) for part in parts for sequence in ids(part.tokens).numpy()]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


def covered(tokens: NDArray[np.int64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which tokens lie in one of the known passages, [n]."""
    inside = np.zeros(len(tokens), np.bool_)
    starts = np.flatnonzero(np.isin(hashes(tokens), known))
    for place in range(PASSAGE):
        inside[starts + place] = True
    return inside


def share_covered(sequences: Iterable[NDArray[np.int64]], known: NDArray[np.uint64]) -> float:
    """Share of the tokens of sequences, [n] each and of one length, that lie in one of the known passages."""
    shares = [float(covered(sequence, known).mean()) for sequence in sequences]
    return float(np.mean(shares)) if shares else 0.0
