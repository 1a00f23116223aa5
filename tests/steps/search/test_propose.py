"""Proposals: first parents have equal layers; children are new neighbours that keep the budget exactly."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.units.cost import parameter_costs
from darwinlm.model.units.levels import Level, ModuleLevels
from darwinlm.model.units.space import SearchSpace
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.budget.problem import Budget, Problem
from darwinlm.steps.search.propose import level_switch, paper_switch, uniform_allocations, uniform_start


def total(costs, allocation):
    return sum(row[level] for row, level in zip(costs, allocation, strict=True))


@st.composite
def problems(draw):
    """Costs that grow with the level, a parent, and a budget that the parent keeps."""
    costs = []
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            size, n_levels = draw(st.integers(1, 50)), draw(st.integers(2, 12))
            costs.append([size * level + (level > 0) * draw(st.integers(0, 3)) for level in range(n_levels)])
            costs[-1] = sorted(costs[-1])
        else:
            costs.append([0, *sorted(draw(st.lists(st.integers(1, 300), min_size=1, max_size=6)))])
    parent = tuple(draw(st.integers(0, len(row) - 1)) for row in costs)
    used = total(costs, parent)
    above, below = draw(st.integers(0, 60)), draw(st.integers(0, 60))
    return costs, parent, Budget(max(0, used - below), used + above)


def papers(parent, costs, budget, rng, *, step, seen):
    """The paper's switch, with modules of as many levels for one kind: what one gives, another of its kind takes."""
    kinds = [len(row) for row in costs]
    child = paper_switch(parent, costs, kinds, budget, rng, seen=seen)
    for kind in kinds:
        moves = [b - a for a, b, own in zip(parent, child, kinds, strict=True) if own == kind]
        assert sum(moves) == 0
        assert sum(map(abs, moves)) <= 6
    return child


SWITCHES = st.sampled_from([level_switch, papers])


@settings(deadline=None, max_examples=150)
@given(problems(), st.integers(0, 2**32), st.floats(0.01, 1), st.booleans(), SWITCHES)
def test_every_child_is_new_within_range_and_within_the_budget(problem, seed, step, parent_is_seen, switch):
    costs, parent, budget = problem
    copies, rng, again = [list(row) for row in costs], random.Random(seed), random.Random(seed)
    seen = {parent} if parent_is_seen else set()
    for _ in range(12):
        before = set(seen)
        try:
            child = switch(parent, costs, budget, rng, step=step, seen=seen)
        except BudgetError:
            break
        assert child == switch(parent, costs, budget, again, step=step, seen=before), "the same seed gives the same"
        assert child not in {parent, *seen}
        assert len(child) == len(parent)
        assert all(0 <= level < len(row) for level, row in zip(child, costs, strict=True))
        assert budget.lower <= total(costs, child) <= budget.upper
        assert seen == before, "nothing given is changed"
        seen.add(child)
    assert costs == copies


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_a_parent_outside_the_budget_is_brought_into_it(seed, n_modules):
    costs = [[10 * level for level in range(9)]] * n_modules
    budget = Budget(40 * n_modules - 10, 40 * n_modules)
    rng = random.Random(seed)
    start = tuple(rng.randrange(9) for _ in range(n_modules))
    assert budget.allows(total(costs, level_switch(start, costs, budget, rng, step=0.1)))


def test_a_small_neighbourhood_is_found_whole():
    """Three equal modules that share one unit: three allocations, and after them none."""
    costs = [[0, 10]] * 3
    budget = Budget(10, 10)
    rng, seen = random.Random(0), {(1, 0, 0)}
    for _ in range(2):
        seen.add(level_switch((1, 0, 0), costs, budget, rng, step=1.0, seen=seen))
    assert seen == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    with pytest.raises(BudgetError, match=r"between 10 and 10 block parameters.*raise budget\.tolerance"):
        level_switch((1, 0, 0), costs, budget, rng, step=1.0, seen=seen)


def problem_of(lower: int, upper: int, *sizes: tuple[int, ...]) -> Problem:
    """MLPs whose levels have so many parameters."""
    modules = tuple(
        ModuleLevels(block, "mlp", tuple(Level(LayerSizes("mlp", size), size) for size in row))
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
