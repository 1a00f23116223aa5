"""What choosing by a measure gains over choosing by the KL, on items that didn't choose.

Letters: c finalists, n items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Choice:
    """The gain of one choice in points of the score, as a share: 0.01 is one per cent.

    Attributes:
        gain: Mean difference between the two winners on the items that didn't choose, both halves after each other.
        stderr: Its standard error over the items; 0 if both chose the same finalist.
        winners: Index of the winner by each half.
        by_kl: Index of the winner by KL.
    """

    gain: float
    stderr: float
    winners: tuple[int, int]
    by_kl: int


def choice(scores: Sequence[Sequence[float]], kls: Sequence[float]) -> Choice:
    """Choose by one half of the items and report on the other one, both ways round.

    `scores` are [c, n]. Even items are one half, odd ones the other. The lower KL decides between equal scores.
    """
    table: NDArray[np.float64] = np.asarray(scores, np.float64)
    by_kl = int(np.argmin(kls))
    halves = table[:, ::2], table[:, 1::2]
    winners = tuple(min(range(len(kls)), key=lambda at: (-half[at].mean(), kls[at])) for half in halves)
    differences = np.concatenate(
        [other[winner] - other[by_kl] for winner, other in zip(winners, reversed(halves), strict=True)]
    )
    stderr = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return Choice(float(differences.mean()), stderr, (winners[0], winners[1]), by_kl)


def spread(scores: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Standard deviation of the finalists' scores, and the one that chance alone gives, both as shares.

    The second one comes from the items' differences from their mean over the finalists.
    """
    table = np.asarray(scores, np.float64)
    centred = table - table.mean(axis=0)
    by_chance = math.sqrt(float(centred.var(axis=0, ddof=1).mean()) / table.shape[1])
    return float(table.mean(axis=1).std(ddof=1)), by_chance
