"""What screening predicts, from curves and slopes, before and after observations; and children that are solved for."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from darwinlm.search.evolve.evolution import CAUTIONS, SHARES
from darwinlm.search.predict.curvature import Curvature
from darwinlm.search.predict.surrogate import Surrogate, sloped
from darwinlm.search.problem.budget import Budget
from darwinlm.search.problem.cost import CostModel
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import SearchSpace
from darwinlm.search.propose.solve import guided

ERRORS = [[1.0, 0.4, 0.0], [1.0, 0.5, 0.0], [1.0, 0.3, 0.0]]
CURVES = [[3.0, 1.0, 0.0], [2.0, 1.5, 0.0], [1.0, 0.2, 0.0]]
SLOPES = [[0.5, 0.0, -0.4], [0.0, 0.1, 0.3], [0.2, 0.2, 0.2]]
BENDS = Curvature(CURVES, ERRORS, [None] * 3)
PARENT = (1, 1, 1)
COSTS = [[0, 5, 10]] * 3
COST = CostModel("block parameters", COSTS)
SPACE = SearchSpace(())
PROBLEM = Problem(SPACE, COST, Budget(15, 15))


def children(count, seed=0):
    rng = random.Random(seed)
    return [tuple(rng.randrange(3) for _ in CURVES) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------------ curvature


def test_a_dense_parent_bends_by_the_single_module_losses():
    for index, curve in enumerate(CURVES):
        assert BENDS.around(index, 2) == pytest.approx(curve)


def test_nested_levels_are_as_far_apart_as_their_errors():
    found = BENDS.around(0, 1)
    assert found == pytest.approx([0.6 * 4 / 1.4, 0, 0.4 * 1 / 0.4])


def test_a_level_that_is_no_worse_than_dense_costs_nothing():
    assert Curvature([[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [None]).around(0, 2) == pytest.approx([1, 0, 0])


def test_removals_with_nothing_in_common_add_up():
    errors, curves = [[0.3, 0.2, 0.0]], [[0.6, 0.4, 0.0]]
    apart = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert Curvature(curves, errors, [apart]).around(0, 1)[0] == pytest.approx(0.5 * 1.0 / 0.5)
    within = np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])  # what level 1 removes, level 0 does too
    assert Curvature(curves, errors, [within]).around(0, 1)[0] == pytest.approx((0.5 - 2 * 0.15) * 1.0 / 0.5)


# ------------------------------------------------------------------------------------------------------------ surrogate


def test_curves_alone_predict_before_anything_was_seen():
    assert Surrogate(CURVES).change(PARENT, (2, 0, 1)) == pytest.approx(-1.0 + 0.5)


def test_with_slopes_the_model_is_of_second_order():
    found = Surrogate(CURVES, curvature=BENDS, slopes=SLOPES).change(PARENT, (2, 0, 1))
    assert found == pytest.approx(-0.4 - 0.1 + BENDS.around(0, 1)[2] + BENDS.around(1, 1)[0])


def test_changes_by_slopes_are_differences_within_modules():
    assert sloped(SLOPES, PARENT, (0, 2, 2)) == pytest.approx(0.5 + 0.2)
    assert sloped(SLOPES, PARENT, PARENT) == 0


def test_bends_weigh_what_they_are_said_to_be_worth():
    flat = [[0.0] * 3] * 3
    once, twice = (Surrogate(CURVES, curvature=BENDS, slopes=flat, worth=worth) for worth in (1.0, 2.0))
    assert twice.change(PARENT, (2, 0, 1)) == pytest.approx(2 * once.change(PARENT, (2, 0, 1)))
    assert once.change(PARENT, (2, 0, 1)) > 0


@pytest.mark.parametrize("true", [(0.5, 0.8), (2.0, 0.0), (0.0, 1.0), (3.0, 2.0)])
def test_weights_of_bends_and_slopes_are_learnt(true):
    by_bends, by_slopes = true
    seen = []
    for child in children(60):
        slope = sloped(SLOPES, PARENT, child)
        seen.append((PARENT, child, by_bends * BENDS.between(PARENT, child).sum() + by_slopes * slope, slope))
    learnt = Surrogate(CURVES, seen, curvature=BENDS, slopes=SLOPES)
    errors = [abs(learnt.change(PARENT, child) - change) for _, child, change, _ in seen]
    assert max(errors) < 0.25 * max(abs(change) for *_, change, _ in seen)
    assert learnt.slope_weight >= 0
    assert np.all(learnt.weights >= 0)


def test_a_module_that_matters_more_than_its_curve_says_is_found_out():
    seen = [(PARENT, child, 4 * (CURVES[1][child[1]] - CURVES[1][1]), 0.0) for child in children(60, seed=1)]
    learnt = Surrogate(CURVES, seen)
    assert learnt.weights[1] > 3 > 1 > max(learnt.weights[0], learnt.weights[2])


# --------------------------------------------------------------------------------------------------------------- guided


def least(losses):
    """The best allocation of the budget, by trying all."""
    every = (each for each in itertools.product(range(3), repeat=3) if sum(5 * level for level in each) == 15)
    return min(every, key=lambda each: sum(row[level] for row, level in zip(losses, each, strict=True)))


def test_children_are_the_best_of_what_the_model_says():
    surrogate = Surrogate(CURVES, curvature=BENDS, slopes=[[9.0, 0.0, -9.0], [-5.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    found = guided(PARENT, surrogate, PROBLEM, cautions=CAUTIONS)
    expected = dict.fromkeys(least(surrogate.losses(PARENT, caution)) for caution in CAUTIONS)
    assert (2, 0, 1) in found
    assert found == [each for each in expected if each != PARENT]


def test_children_of_the_first_parent_are_also_those_of_corrected_curves():
    slopes = np.array([[0.0, 0.0, -9.0], [-4.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    surrogate = Surrogate(CURVES, curvature=BENDS, slopes=slopes)
    found = guided(PARENT, surrogate, PROBLEM, cautions=CAUTIONS, shares=SHARES)
    expected = [least(np.array(CURVES) + share * slopes) for share in SHARES]
    assert {each for each in expected if each != PARENT} <= set(found)
    assert set(expected) - {PARENT}


def test_the_parent_is_no_child_of_its_own():
    flat = Surrogate(CURVES, curvature=BENDS, slopes=[[0.0] * 3] * 3)
    assert PARENT not in guided(PARENT, flat, PROBLEM, cautions=CAUTIONS, shares=SHARES)


def test_a_budget_that_no_choice_meets_gives_no_children():
    surrogate = Surrogate(CURVES, curvature=BENDS, slopes=SLOPES)
    assert guided(PARENT, surrogate, Problem(SPACE, COST, Budget(16, 17)), cautions=(1.0,)) == []
