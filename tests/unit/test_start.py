"""First parents: equal layers within the budget, also where single steps can't bring them there."""

import random
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from darwinlm.database.levels import Level, ModuleLevels
from darwinlm.recipe import SearchSettings
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.evaluate.fitness import Clock, Fitness
from darwinlm.search.problem.cost import parameter_costs
from darwinlm.search.problem.equal import equal_layers
from darwinlm.search.problem.problem import Budget, Problem
from darwinlm.search.problem.space import Allocation, SearchSpace
from darwinlm.search.propose.start import neighbour_start, uniform_allocations, uniform_start
from darwinlm.search.search import _equal_start, best_of, first_parent


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


def attention_and_mlp() -> Problem:
    """Two modules whose uniform allocations trade attention for MLP: five of them within 8 parameters."""
    rows = {"attention": (0, 1, 2, 3, 4), "mlp": (0, 1, 2, 3, 4, 5, 6, 7, 8)}
    modules = tuple(
        ModuleLevels(0, kind, tuple(Level(at, at, size, size) for at, size in enumerate(row)))
        for kind, row in rows.items()
    )
    space = SearchSpace(modules)
    return Problem(space, parameter_costs(space), Budget(0, 8))


def test_uniform_allocations_keep_the_limit_to_the_last_parameter() -> None:
    assert uniform_allocations(problem_of(0, 100, (0, 50, 51), (0, 50, 51))) == [(1, 1)]


def test_the_best_uniform_allocation_is_chosen_on_all_tokens_from_three() -> None:
    problem = attention_and_mlp()
    choices = uniform_allocations(problem)
    assert len(choices) == 5
    few = dict(zip(choices, (5.0, 1.0, 2.0, 3.0, 4.0), strict=True))
    all_tokens = dict(zip(choices, (0.0, 1.0, 0.8, 0.5, 0.1), strict=True))
    fitness = Measured(lambda each, tokens: (few if tokens == 64 else all_tokens)[each])
    losses = [[0.0] * 5, [0.0] * 9]
    best = best_of(uniform_allocations(problem), cast(Fitness, fitness), losses, 256, Clock())
    assert best == choices[3]
    assert fitness.asked == [(each, 64) for each in choices] + [(each, 256) for each in choices[1:4]]


@pytest.mark.parametrize(("usable", "found"), [(True, 3), (False, 2)])
def test_without_time_equal_layers_are_no_worse_than_the_uniform_model(usable: bool, found: int) -> None:
    """Losses are predicted lowest for level 2 of the attention, and measured lower for the uniform model's level 3."""
    problem = attention_and_mlp()
    runs = lambda each: None if usable or each[0] != 3 else "not this size"  # noqa: E731
    equal = equal_layers(problem.space, problem.cost, 8, runs=runs, removable=False)
    fitness = Measured(lambda each, tokens: abs(each[0] - 3.0))
    losses = [[4.0, 3.0, 0.0, 3.0, 4.0], [0.0] * 9]
    uniform = next(each for each in uniform_allocations(problem) if each[0] == 3)
    clock = Clock(limit=-1.0)
    assert _equal_start(equal, cast(Fitness, fitness), losses, uniform, 256, clock)[0] == found


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
