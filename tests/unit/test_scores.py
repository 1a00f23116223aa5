"""Which levels are measured, and what is made of the measurements for the others."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darwinlm.database.levels import Level, ModuleLevels
from darwinlm.errors import NumericsError
from darwinlm.search.predict.module_losses import (
    MEASURED_TOGETHER,
    level_losses,
    levels_around,
    levels_to_measure,
    measure_levels,
    spread_all,
    spread_scores,
)
from darwinlm.search.problem.space import SearchSpace

FALLING = [1.0, 0.64, 0.36, 0.16, 0.04, 0.01, 0.0]


# ------------------------------------------------------------------------------------------------ levels_to_measure


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 20])
def test_the_measured_levels_are_pruned_ones_and_the_first_is_among_them(count):
    chosen = levels_to_measure(FALLING, count)
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= count
    assert len(FALLING) - 1 not in chosen, "the dense level loses nothing and isn't measured"


def test_the_range_is_split_evenly_in_the_root_of_the_error():
    assert levels_to_measure(FALLING, 1) == [0]
    assert levels_to_measure([1.0, 0.81, 0.64, 0.25, 0.04, 0.0], 2) == [0, 3]
    assert levels_to_measure([1.0, 0.64, 0.45, 0.11, 0.04, 0.0], 3) == [0, 2, 3]


def test_a_module_with_two_levels_is_measured_once():
    assert levels_to_measure([1.0, 0.0], 5) == [0]


def test_a_module_without_any_output_is_still_measured_once():
    assert levels_to_measure([0.0, 0.0, 0.0], 3) == [0]


# ---------------------------------------------------------------------------------------------------- spread_scores

falling = st.lists(st.floats(1e-3, 1), min_size=2, max_size=12, unique=True).map(lambda xs: [*sorted(xs)[::-1], 0.0])


@st.composite
def measured_modules(draw):
    """Errors that fall with the level, and for some levels losses that fall with the error."""
    errors = draw(falling)
    levels = sorted({0, *draw(st.lists(st.integers(0, len(errors) - 2), max_size=4))})
    losses = sorted(draw(st.lists(st.floats(0, 10), min_size=len(levels), max_size=len(levels))), reverse=True)
    return errors, dict(zip(levels, losses, strict=True))


@given(measured_modules())
def test_they_are_exact_where_measured_monotone_and_zero_when_dense(case):
    errors, measured = case
    scores = spread_scores(errors, measured)
    assert len(scores) == len(errors)
    assert scores[-1] == 0.0
    for level, loss in measured.items():
        assert scores[level] == pytest.approx(loss, abs=1e-12)
    assert all(left >= right - 1e-12 for left, right in itertools.pairwise(scores))


def test_in_between_they_follow_the_error():
    scores = spread_scores([1.0, 0.5, 0.25, 0.0], {0: 4.0})
    assert scores == pytest.approx([4.0, 2.0, 1.0, 0.0])
    scores = spread_scores([1.0, 0.75, 0.5, 0.25, 0.0], {0: 4.0, 2: 1.0})
    assert scores == pytest.approx([4.0, 2.5, 1.0, 0.5, 0.0])


def test_a_loss_that_rises_while_the_error_falls_is_levelled():
    """Few tokens are noisy; a smaller error must never be worth less."""
    scores = spread_scores([1.0, 0.5, 0.0], {0: 1.0, 1: 3.0})
    assert scores == pytest.approx([3.0, 3.0, 0.0])


def test_errors_need_not_be_in_the_order_of_the_levels():
    """On a lattice a level with more parameters can stray further."""
    scores = spread_scores([1.0, 0.2, 0.4, 0.1, 0.0], {0: 10.0, 2: 3.0})
    assert scores == pytest.approx([10.0, 1.5, 3.0, 0.75, 0.0])


def test_levels_with_the_same_error_have_the_same_score():
    scores = spread_scores([1.0, 0.5, 0.5, 0.0], {0: 2.0, 1: 0.6, 2: 0.6})
    assert scores[1] == scores[2] == pytest.approx(0.6)


def test_a_module_without_any_output_costs_nothing():
    assert spread_scores([0.0, 0.0, 0.0], {0: 0.0}) == [0.0, 0.0, 0.0]


# --------------------------------------------------------------------------------------------------- measure_levels


def module(block, kind, widths):
    return ModuleLevels(block, kind, tuple(Level(min(w, 1), min(w, 1), w, 10 * w) for w in widths))


SPACE = SearchSpace((module(0, "attention", range(4)), module(0, "mlp", range(6)), module(1, "mlp", range(3))))


ERRORS = [[(1 - level.width / module.levels[-1].width) ** 2 for level in module.levels] for module in SPACE.modules]


@dataclass
class Fitness:
    """Loses 1 for each unit removed; keeps what it was asked."""

    def __post_init__(self):
        self.asked = []
        self.bases = []

    def set_base(self, allocation):
        self.bases.append(allocation)

    def kls(self, allocations, n_tokens):
        self.asked += [(allocation, n_tokens) for allocation in allocations]
        return [float(sum(d - at for d, at in zip(SPACE.dense, each, strict=True))) for each in allocations]


def score(known, fitness, n_levels=2, **more):
    measure_levels(SPACE, ERRORS, fitness, n_tokens=64, n_levels=n_levels, known=known, **more)
    return spread_all(ERRORS, known)


def test_each_candidate_differs_from_the_dense_model_in_one_module():
    fitness, known = Fitness(), {}
    scores = score(known, fitness)
    assert fitness.bases == [SPACE.dense]
    for allocation, n_tokens in fitness.asked:
        assert n_tokens == 64
        assert sum(a != b for a, b in zip(allocation, SPACE.dense, strict=True)) == 1
    assert [len(row) for row in scores] == [4, 6, 3]
    assert [row[0] for row in scores] == [3.0, 5.0, 2.0]
    assert all(row[-1] == 0.0 for row in scores)
    assert len(known) == len(fitness.asked)


def test_what_is_known_is_not_measured_again():
    whole = score(known := {}, Fitness())
    fitness = Fitness()
    assert score(dict(known), fitness) == whole
    assert fitness.asked == []
    half = dict(list(known.items())[: len(known) // 2])
    assert score(half, fitness) == whole
    assert half == known
    assert len(fitness.asked) == len(known) - len(known) // 2


def test_progress_and_saving_come_after_a_few():
    saved, seen, known = [], [], {}
    score(known, Fitness(), n_levels=9, progress=lambda *at: seen.append(at), save=lambda: saved.append(len(known)))
    total = len(known)
    assert seen == [(MEASURED_TOGETHER, total), (total, total)]
    assert saved == [MEASURED_TOGETHER, total]


def test_a_loss_that_is_not_finite_is_refused():
    fitness = Fitness()
    fitness.kls = lambda allocations, n_tokens: [math.inf] * len(allocations)
    with pytest.raises(NumericsError, match="block 0 attention at level 0 gives values that aren't finite"):
        score({}, fitness)


def test_a_second_look_is_at_pruned_levels_that_were_chosen():
    curves = spread_all(ERRORS, {"0:0": 3.0, "1:0": 5.0, "2:0": 2.0})
    assert levels_around(curves, (1, 5, 0)) == [(0, 1), (2, 0)]


def test_measured_losses_follow_local_errors_where_nothing_is_estimated():
    known = {"0:0": 3.0, "1:0": 5.0, "2:0": 2.0}
    assert level_losses(ERRORS, None, known) == spread_all(ERRORS, known)


def test_measured_losses_and_estimates_count_alike():
    known = {"0:0": 3.0, "1:0": 5.0, "2:0": 2.0}
    estimates = [[2.0 * error for error in row] for row in ERRORS]
    spread = spread_all(ERRORS, known)
    found = level_losses(ERRORS, estimates, known)
    for row, first, second in zip(found, spread, estimates, strict=True):
        assert row == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    assert found[0][0] == pytest.approx((3.0 + estimates[0][0]) / 2)
    assert all(row[-1] == 0.0 for row in found)
