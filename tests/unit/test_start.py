"""First parents: equal layers within the budget, also where single steps can't bring them there."""

import random
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from darwinlm.recipe import SearchSettings
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.fitness import Fitness
from darwinlm.search.problem import Budget, Problem
from darwinlm.search.propose import neighbour_start, uniform_allocations, uniform_start
from darwinlm.search.search import first_parent
from darwinlm.units.cost import parameter_costs
from darwinlm.units.levels import Level, ModuleLevels
from darwinlm.units.space import Allocation, SearchSpace


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


class Measured:
    """Stands in for the fitness: losses by a function of candidate and tokens, and a record of what was asked."""

    def __init__(self, loss: Callable[[Allocation, int], float]) -> None:
        self.loss = loss
        self.asked: list[tuple[Allocation, int]] = []

    def set_base(self, allocation: Allocation | None) -> None:
        """Whatever is kept between candidates."""

    def kls(self, allocations: Sequence[Allocation], n_tokens: int) -> list[float]:
        self.asked += [(each, n_tokens) for each in allocations]
        return [self.loss(each, n_tokens) for each in allocations]


def test_uniform_allocations_keep_the_limit_to_the_last_parameter() -> None:
    assert uniform_allocations(problem_of(0, 100, (0, 50, 51), (0, 50, 51))) == [(1, 1)]


@pytest.mark.parametrize(
    ("bounds", "neighbour", "losses", "moved"),
    [
        ((8, 12), (2, 2, 0), [[5.0, 1.0, 0.0], [5.0, 1.0, 0.0], [99.0, 50.0, 0.0]], (1, 1, 0)),
        ((18, 20), (0, 1, 1), [[5.0, 4.0, 0.0], [5.0, 4.0, 0.0], [0.0, 50.0, 99.0]], (2, 1, 1)),
    ],
    ids=["smaller", "larger"],
)
def test_modules_of_a_neighbour_move_towards_the_budget_or_stay(bounds, neighbour, losses, moved) -> None:
    assert neighbour_start(problem_of(*bounds, *((0, 5, 10),) * 3), losses, neighbour) == moved


def test_a_neighbour_that_cannot_be_moved_to_the_budget_is_left_out() -> None:
    problem, fitness = problem_of(16, 16, (0, 7), (0, 9), (0, 13)), Measured(lambda each, tokens: 0.0)
    assert first_parent(problem, cast(Fitness, fitness), SearchSettings(), LOSSES, (0, 0, 1), (0, 0, 1)) == (1, 1, 0)
    assert fitness.asked == []


@pytest.mark.parametrize(("neighbours_loss", "first"), [(0.5, (0, 1, 0)), (2.0, (1, 0, 0))])
def test_a_neighbour_is_the_first_parent_where_its_loss_is_lower(neighbours_loss, first) -> None:
    problem = problem_of(5, 5, (0, 5), (0, 5), (0, 5))
    fitness = Measured(lambda each, tokens: neighbours_loss if each == (0, 1, 0) else 1.0)
    losses = [[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]
    settings = SearchSettings()
    assert first_parent(problem, cast(Fitness, fitness), settings, losses, (1, 0, 0), (1, 1, 0)) == first
    assert {tokens for _, tokens in fitness.asked} == {settings.rounds[-1].tokens}
