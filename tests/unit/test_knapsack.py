"""The multiple-choice knapsack against trying every combination."""

import itertools
import random

import pytest

from darwinlm.runtime.errors import BudgetError
from darwinlm.search import knapsack
from darwinlm.search.knapsack import solve_knapsack


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
