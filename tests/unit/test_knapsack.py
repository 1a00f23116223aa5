"""The multiple-choice knapsack against trying all; what slopes and curvature predict, and children solved for."""

import itertools
import random

import numpy as np
import pytest

from darwinlm.runtime.errors import BudgetError
from darwinlm.search import knapsack
from darwinlm.search.evolution import SLOPE_PARTS, STRENGTHS, solved_children
from darwinlm.search.knapsack import solve_knapsack
from darwinlm.search.prediction import Curvature, Surrogate, first_order
from darwinlm.search.problem import Budget, Problem
from darwinlm.units.cost import CostModel
from darwinlm.units.space import SearchSpace


def total(table, choice):
    return sum(row[index] for row, index in zip(table, choice, strict=True))


def brute_force(losses, costs, lower, upper):
    """Least loss of all choices within the bounds, None when there is none."""
    choices = itertools.product(*(range(len(row)) for row in losses))
    allowed = [total(losses, choice) for choice in choices if lower <= total(costs, choice) <= upper]
    return min(allowed, default=None)


def problem(seed, *, scale=1):
    """Losses that fall and costs that grow with the level, as a module's do; and bounds that bite."""
    rng = random.Random(seed)
    losses, costs = [], []
    for _ in range(rng.randint(1, 5)):
        n_levels = rng.randint(1, 5)
        losses.append(sorted((rng.uniform(0, 3) for _ in range(n_levels)), reverse=True))
        costs.append([scale * cost for cost in sorted(rng.sample(range(60), n_levels))])
    most = sum(row[-1] for row in costs)
    upper = rng.randint(0, most + 1)
    return losses, costs, int(upper * rng.choice((0.0, 0.5, 0.9))), upper


@pytest.mark.parametrize("scale", [1, 1_000_003])
@pytest.mark.parametrize("seed", range(60))
def test_it_finds_the_best_choice(seed, scale):
    losses, costs, lower, upper = problem(seed, scale=scale)
    best = brute_force(losses, costs, lower, upper)
    if best is None:
        with pytest.raises(BudgetError):
            solve_knapsack(losses, costs, lower, upper)
        return
    chosen = solve_knapsack(losses, costs, lower, upper)
    assert lower <= total(costs, chosen) <= upper
    assert total(losses, chosen) <= best * (1 + 1e-4) + 1e-6, "the solver's own gap"


@pytest.mark.parametrize(("lower", "upper"), [(0, 4), (100, 200), (11, 14)])
def test_bounds_that_no_choice_keeps(lower, upper):
    costs = [[5, 10], [0, 5]]
    with pytest.raises(BudgetError, match=rf"between {lower} and {upper} block parameters"):
        solve_knapsack([[1.0, 0.0], [1.0, 0.0]], costs, lower, upper)


@pytest.mark.parametrize("excess", [1, 10, 40])
def test_a_budget_of_millions_is_kept_to_the_last_parameter(excess):
    """The solver's own tolerance is a millionth of the bound; one parameter too many is still too many."""
    upper = 100_000_000
    assert solve_knapsack([[1.0, 0.5, 0.0]], [[10, upper, upper + excess]], 0, upper) == (1,)
    with pytest.raises(BudgetError):
        solve_knapsack([[1.0, 0.0]], [[10, upper + excess]], upper // 2, upper)


def test_a_budget_that_falls_between_two_sizes_is_refused_without_a_search(monkeypatch):
    """Every cost is a multiple of 48 and no multiple lies within the bounds."""
    monkeypatch.setattr(knapsack, "milp", lambda **_: pytest.fail("the solver was asked"))
    attention = [0, 1584, 2352, 3120, 4656, 4656, 6960]
    mlp = [0, *(48 + 1152 * level for level in range(1, 13))]
    costs = [attention, mlp] * 4
    with pytest.raises(BudgetError):
        solve_knapsack([[1 - cost / row[-1] for cost in row] for row in costs], costs, 46_242, 46_247)


def test_choices_that_the_solver_takes_for_allowed_are_checked_and_forbidden(monkeypatch):
    whole, offered = knapsack.milp, []

    def tolerant(constraints, **arguments):
        one_each, _, *forbidden = constraints
        offered.append(whole(constraints=[one_each, *forbidden], **arguments))
        return offered[-1]

    monkeypatch.setattr(knapsack, "milp", tolerant)
    assert solve_knapsack([[1.0, 0.0], [1.0, 0.5]], [[0, 10], [0, 10]], 10, 10) == (1, 0)
    assert [found.x.round().tolist() for found in offered] == [[0, 1, 0, 1], [0, 1, 1, 0]], "the first is too large"


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
