"""Paired scores: intervals that cover, exact tests, and numbers of items against known formulas."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from darwinlm.evaluation.measures.paired import Paired, items_to_see


def drawn(n: int, seed: int, loss: float = 0.1) -> Paired:
    """Items that the dense model answers in 80 %, of which the smaller one loses some and gains fewer."""
    rng = np.random.default_rng(seed)
    dense = rng.random(n) < 0.8
    small = np.where(dense, rng.random(n) >= loss, rng.random(n) < 0.05)
    return Paired(dense.astype(float).tolist(), small.astype(float).tolist())


def test_means_difference_and_share() -> None:
    paired = Paired([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0])
    assert (paired.dense_mean, paired.small_mean, paired.difference) == (0.75, 0.5, -0.25)
    assert paired.kept == pytest.approx(2 / 3)
    assert Paired([0.0, 0.0], [1.0, 0.0]).kept is None


def test_intervals_cover_the_true_difference() -> None:
    expected = 0.8 * -0.1 + 0.2 * 0.05
    inside = 0
    for seed in range(60):
        low, high = drawn(200, seed).interval
        inside += low <= expected <= high
    assert inside >= 52, "95 % of 60 are 57; fewer than 52 come by chance once in a hundred times"


def test_the_interval_is_that_of_the_normal_distribution_where_items_are_many() -> None:
    paired = drawn(4000, 1)
    low, high = paired.interval
    assert high - low == pytest.approx(2 * 1.96 * paired.error, rel=0.05)


def test_the_same_scores_have_the_same_interval() -> None:
    assert drawn(50, 3).interval == drawn(50, 3).interval


def test_models_that_agree_everywhere_may_differ_elsewhere() -> None:
    paired = Paired([1.0] * 30, [1.0] * 30)
    assert paired.interval == (pytest.approx(-0.1), pytest.approx(0.1))
    assert paired.error > 0
    assert paired.items_for(0.02) > 30


def test_mcnemar_is_the_exact_sign_test() -> None:
    paired = Paired([1.0] * 9 + [0.0], [0.0] * 8 + [1.0, 1.0])  # eight lost, one won
    assert paired.p_value == pytest.approx(2 * binom.cdf(1, 9, 0.5))
    assert Paired([0.5], [0.25]).p_value is None
    assert Paired([1.0], [1.0]).p_value == 1.0


def test_so_many_items_see_a_difference_with_the_stated_chance() -> None:
    n = items_to_see(0.05, 0.4)
    assert n == math.ceil(((1.959964 + 0.841621) * 0.4 / 0.05) ** 2)
    rng = np.random.default_rng(0)
    seen = [abs(rng.normal(0.05, 0.4 / math.sqrt(n))) > 1.959964 * 0.4 / math.sqrt(n) for _ in range(4000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.02)


def test_no_right_answers_still_leave_an_interval():
    pair = Paired([0.0] * 30, [0.0] * 30)
    assert pair.interval == (pytest.approx(-0.1), pytest.approx(0.1))
    assert pair.items_for(0.02) is None
