"""First parents: equal layers within the budget, also where single steps can't bring them there."""

import random

import pytest

from darwinlm.runtime.errors import BudgetError
from darwinlm.search.problem import Budget, Problem
from darwinlm.search.propose import uniform_allocations, uniform_start
from darwinlm.units.cost import parameter_costs
from darwinlm.units.levels import Level, ModuleLevels
from darwinlm.units.space import SearchSpace


def problem_of(lower: int, upper: int, *sizes: tuple[int, ...]) -> Problem:
    """MLPs whose levels have so many parameters."""
    modules = tuple(
        ModuleLevels(block, "mlp", tuple(Level(min(size, 1), min(size, 1), size, size) for size in row))
        for block, row in enumerate(sizes)
    )
    space = SearchSpace(modules)
    return Problem(space, parameter_costs(space), Budget(lower, upper))


LOSSES = [[1.0, 0.0], [1.0, 0.0], [3.0, 0.0]]


def test_a_start_within_the_budget_stays() -> None:
    problem = problem_of(5, 10, (0, 5), (0, 5), (0, 5))
    assert uniform_start(problem, LOSSES, (1, 1, 0), random.Random(0)) == (1, 1, 0)


def test_the_knapsack_takes_over_where_single_steps_miss_the_bounds() -> None:
    """Only the first two modules together cost 16."""
    problem = problem_of(16, 16, (0, 7), (0, 9), (0, 13))
    assert uniform_start(problem, LOSSES, (0, 0, 1), random.Random(0)) == (1, 1, 0)


def test_bounds_that_nothing_meets_are_refused() -> None:
    problem = problem_of(15, 15, (0, 7), (0, 9), (0, 13))
    with pytest.raises(BudgetError, match=r"no choice of levels lies between 15 and 15 block parameters: raise budget"):
        uniform_start(problem, LOSSES, (0, 0, 0), random.Random(0))


def test_uniform_allocations_keep_the_limit_to_the_last_parameter() -> None:
    assert uniform_allocations(problem_of(0, 100, (0, 50, 51), (0, 50, 51))) == [(1, 1)]
