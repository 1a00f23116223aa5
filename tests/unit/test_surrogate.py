"""What slopes and curvature predict, before and after observations; and children that are solved for."""

import itertools
import random

import numpy as np
import pytest

from darwinlm.search.evolution import SLOPE_PARTS, STRENGTHS, solved_children
from darwinlm.search.prediction import Curvature, Surrogate, first_order
from darwinlm.search.problem import Budget, Problem
from darwinlm.units.cost import CostModel
from darwinlm.units.space import SearchSpace

LOSSES = [[3.0, 1.0, 0.0], [2.0, 1.5, 0.0], [1.0, 0.2, 0.0]]
SLOPES = [[0.5, 0.0, -0.4], [0.0, 0.1, 0.3], [0.2, 0.2, 0.2]]
CURVATURE = Curvature(LOSSES, [None] * 3)
PARENT = (1, 1, 1)
COSTS = [[0, 5, 10]] * 3
COST = CostModel("block parameters", COSTS)
SPACE = SearchSpace(())
PROBLEM = Problem(SPACE, COST, Budget(15, 15))


def children(count, seed=0):
    rng = random.Random(seed)
    return [tuple(rng.randrange(3) for _ in LOSSES) for _ in range(count)]


def test_levels_are_as_far_apart_as_what_only_one_of_them_removes():
    for index, row in enumerate(LOSSES):
        assert CURVATURE.around(index, 2) == pytest.approx(row), "around the dense model"
    assert CURVATURE.around(0, 1) == pytest.approx([2.0, 0.0, 1.0]), "nested levels"
    losses = [[0.3, 0.2, 0.0]]
    apart = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert Curvature(losses, [apart]).around(0, 1)[0] == pytest.approx(0.5)
    within = np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])  # what level 1 removes, level 0 does too
    assert Curvature(losses, [within]).around(0, 1)[0] == pytest.approx(0.5 - 2 * 0.15)


def test_the_model_is_of_second_order():
    assert first_order(SLOPES, PARENT, (0, 2, 2)) == pytest.approx(0.5 + 0.2)
    assert first_order(SLOPES, PARENT, PARENT) == 0
    curved = CURVATURE.around(0, 1)[2] + CURVATURE.around(1, 1)[0]
    for weight in (1.0, 2.0):
        predicted = Surrogate(CURVATURE, SLOPES, curvature_weight=weight).change(PARENT, (2, 0, 1))
        assert predicted == pytest.approx(-0.4 - 0.1 + weight * curved)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 3.0])
def test_the_weight_of_curvature_is_learnt_and_slopes_count_as_they_are(true):
    seen = []
    for child in children(60):
        slope = first_order(SLOPES, PARENT, child)
        seen.append((PARENT, child, true * CURVATURE.between(PARENT, child).sum() + slope, slope))
    learnt = Surrogate(CURVATURE, SLOPES, seen)
    assert learnt.weights == pytest.approx([true] * 3, rel=0.05)
    errors = [abs(learnt.change(PARENT, child) - change) for _, child, change, _ in seen]
    assert max(errors) < 0.05 * max(abs(change) for *_, change, _ in seen)


FLAT = [[0.0] * 3] * 3


def test_a_module_that_matters_more_than_its_loss_says_is_found_out():
    seen = [(PARENT, child, 4 * CURVATURE.around(1, 1)[child[1]], 0.0) for child in children(60, seed=1)]
    learnt = Surrogate(CURVATURE, FLAT, seen)
    assert learnt.weights[1] > 3 > 1 > max(learnt.weights[0], learnt.weights[2])


def least(losses):
    """The best allocation of the budget, by trying all."""
    every = (each for each in itertools.product(range(3), repeat=3) if sum(5 * level for level in each) == 15)
    return min(every, key=lambda each: sum(row[level] for row, level in zip(losses, each, strict=True)))


def test_children_are_the_best_of_what_the_model_says():
    surrogate = Surrogate(CURVATURE, [[9.0, 0.0, -9.0], [-5.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    found = solved_children(PARENT, surrogate, PROBLEM, strengths=STRENGTHS)
    expected = dict.fromkeys(least(surrogate.losses(PARENT, strength)) for strength in STRENGTHS)
    assert (2, 0, 1) in found
    assert found == [each for each in expected if each != PARENT]


def test_children_of_the_first_parent_are_also_those_of_corrected_curves():
    slopes = np.array([[0.0, 0.0, -9.0], [-4.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    surrogate = Surrogate(CURVATURE, slopes)
    found = solved_children(PARENT, surrogate, PROBLEM, strengths=STRENGTHS, slope_parts=SLOPE_PARTS)
    expected = [least(np.array(LOSSES) + part * slopes) for part in SLOPE_PARTS]
    assert {each for each in expected if each != PARENT} <= set(found)
    assert set(expected) - {PARENT}


def test_the_parent_is_no_child_of_its_own_and_there_may_be_none():
    flat = Surrogate(CURVATURE, [[0.0] * 3] * 3)
    assert PARENT not in solved_children(PARENT, flat, PROBLEM, strengths=STRENGTHS, slope_parts=SLOPE_PARTS)
    impossible = Problem(SPACE, COST, Budget(16, 17))
    assert solved_children(PARENT, Surrogate(CURVATURE, SLOPES), impossible, strengths=(1.0,)) == []
