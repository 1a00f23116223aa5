"""Scores of two models on the same items: their difference, its error, and what so few items can tell.

Letters: n items, d differences of their scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
POWER = 0.8
"""Chance to see a difference that is there, as is usual where numbers of items are planned."""
RESAMPLES = 4999
SEED = 0
"""Resamples of the bootstrap, and their seed, so that the same scores have the same interval."""
TOGETHER = 1_000_000
"""Numbers that the bootstrap draws at a time."""
NOTABLE = 0.02
"""Loss, as a share of the dense model's score, that people want to see: the warning of too few items is about it."""


@dataclass(frozen=True)
class Paired:
    """Scores of the dense model and of a smaller one on the same n items."""

    dense: Sequence[float]
    small: Sequence[float]

    def __post_init__(self) -> None:
        assert len(self.dense) == len(self.small), "both models have all items"

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.dense)

    @cached_property
    def d(self) -> NDArray[np.float64]:
        """Difference of each item, [n]: negative where the smaller model is worse."""
        return np.asarray(self.small, np.float64) - np.asarray(self.dense, np.float64)

    @property
    def dense_mean(self) -> float:
        """Score of the dense model."""
        return math.fsum(self.dense) / self.n

    @property
    def small_mean(self) -> float:
        """Score of the smaller model."""
        return math.fsum(self.small) / self.n

    @property
    def difference(self) -> float:
        """Mean difference."""
        return math.fsum(self.d) / self.n

    @property
    def kept(self) -> float | None:
        """Share of the dense model's score that the smaller one has; None if that score isn't positive."""
        return self.small_mean / self.dense_mean if self.dense_mean > 0 else None

    @property
    def binary(self) -> bool:
        """Whether all scores are 0 or 1."""
        return {*self.dense, *self.small} <= {0.0, 1.0}

    @property
    def widest(self) -> float:
        """The largest difference that an item could have, as far as these scores show."""
        return 1.0 if self.binary else max(map(abs, (*self.dense, *self.small)))

    @property
    def spread(self) -> float:
        """Standard deviation of the differences, at least that of a single item that differs by the widest score.

        Without such an item, so few of them say nothing about how often models differ.
        """
        least = self.widest / math.sqrt(self.n)
        return max(float(self.d.std(ddof=1)) if self.n > 1 else 0.0, least)

    @property
    def error(self) -> float:
        """Standard error of the mean difference."""
        return self.spread / math.sqrt(self.n)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean difference, by the bootstrap.

        Where no item differs, it is that of the rule of three: up to 3/n of all items may.
        """
        if not self.d.any() or self.n < 2:
            reach = min(3 / self.n, 1.0) * self.widest
            return self.difference - reach, self.difference + reach
        if np.ptp(self.d) == 0:
            return self.difference, self.difference
        from scipy.stats import bootstrap  # half a second, which a run without measures saves

        found = bootstrap(
            (self.d,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, TOGETHER // self.n),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(SEED),
        ).confidence_interval
        return float(found.low), float(found.high)

    @property
    def p_value(self) -> float | None:
        """Exact McNemar test of whether either model answers more; None if scores aren't 0 or 1."""
        from scipy.stats import binomtest

        if not self.binary:
            return None
        won, lost = int((self.d > 0).sum()), int((self.d < 0).sum())
        return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0

    def items_for(self, loss: float) -> int | None:
        """Number of such items that show a loss of a share of the dense score; None if that score isn't positive."""
        if self.dense_mean <= 0:
            return None
        return items_to_see(loss * self.dense_mean, self.spread)


def items_to_see(difference: float, spread: float) -> int:
    """Number of items that show a mean difference, with 80 % chance at 95 % confidence, two-sided."""
    from scipy.stats import norm

    reach = norm.ppf(0.5 + CONFIDENCE / 2) + norm.ppf(POWER)
    return math.ceil((reach * spread / difference) ** 2)
