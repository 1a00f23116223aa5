"""First parents: equal layers, or the result at a neighbouring budget; a knapsack for other methods."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.search.problem.problem import Budget, Problem
from darwinlm.search.problem.space import Allocation, PerLevel, uniform_sizes
from darwinlm.search.propose.level_switch import filled


def knapsack_start(problem: Problem, losses: PerLevel) -> Allocation:
    """The allocation with the lowest sum of losses within the budget. Raises BudgetError.

    Losses are those of single modules, or local errors as in ZipLM (arXiv 2302.04089).
    """
    cost, budget = problem.cost, problem.budget
    return _solved(losses, cost.costs, budget)


def _solved(losses: PerLevel, costs: Sequence[Sequence[int]], budget: Budget) -> Allocation:
    """The first process's solution, in all: each has its own when the solver's time is up."""
    solve = partial(solve_knapsack, losses, costs, budget.lower, budget.upper, words=budget.words)
    return parallel.decide(solve)


def uniform_start(problem: Problem, losses: PerLevel, uniform: Allocation, rng: random.Random) -> Allocation:
    """Equal layers, adjusted to use up the budget. Raises BudgetError if no allocation lies within the bounds."""
    try:
        return filled(uniform, problem.cost.costs, problem.budget, rng)
    except BudgetError:  # few large levels: single random steps can miss the bounds
        return knapsack_start(problem, losses)


def neighbour_start(problem: Problem, losses: PerLevel, neighbour: Allocation) -> Allocation:
    """The result at a neighbouring budget, moved to this budget by a knapsack.

    Every module of `neighbour` keeps its level or moves towards this budget. Raises BudgetError if no such allocation
    exists.
    """
    cost, budget = problem.cost, problem.budget
    shrink = cost.of(neighbour) - cost.fixed > budget.upper
    allowed = [
        [at for at, amount in enumerate(row) if (amount <= row[level] if shrink else amount >= row[level])]
        for row, level in zip(cost.costs, neighbour, strict=True)
    ]
    choice = _solved(
        [[row[at] for at in places] for row, places in zip(losses, allowed, strict=True)],
        [[row[at] for at in places] for row, places in zip(cost.costs, allowed, strict=True)],
        budget,
    )
    return tuple(places[at] for places, at in zip(allowed, choice, strict=True))


def uniform_allocations(problem: Problem) -> list[Allocation]:
    """Uniform allocations: one level for all attention modules, one for all MLPs, as large as the budget allows.

    For each attention level, and each number of experts of a mixture, the widest MLP level within the budget is chosen.
    They respect the budget's upper bound, but not always the lower one. Raises BudgetError if no uniform allocation
    fits.
    """
    cost, limit = problem.cost, problem.budget.limit
    fitting = ([each for each in sizes if cost.of(each) <= limit] for sizes in uniform_sizes(problem.space))
    uniform = list(dict.fromkeys(sizes[-1] for sizes in fitting if sizes))
    if not uniform:
        raise BudgetError(f"no uniform model has at most {cost.words(limit)}")
    return uniform
