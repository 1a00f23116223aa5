"""The first parent: from single-module losses or local errors, uniform, random, or a neighbour's answer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from darwinlm.errors import BudgetError
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation, Curves, SearchSpace
from darwinlm.search.propose.level_switch import filled


def knapsack_start(problem: Problem, curves: Curves) -> Allocation:
    """The allocation with the least sum of losses within the budget. Raises BudgetError.

    Args:
        problem: Costs and budget.
        curves: Single-module losses; or local errors, which is what ZipLM (arXiv 2302.04089) puts under its budget.
    """
    cost, budget = problem.cost, problem.budget
    return solve_knapsack(curves, cost.costs, budget.lower, budget.upper, words=budget.words)


def random_start(problem: Problem, rng: random.Random) -> Allocation:
    """Random levels, brought within the budget. Raises BudgetError."""
    anywhere = tuple(rng.randrange(len(module.levels)) for module in problem.space.modules)
    return filled(anywhere, problem.cost.costs, problem.budget, rng)


def neighbour_start(problem: Problem, curves: Curves, neighbour: Allocation) -> Allocation:
    """A neighbour's answer moved to this budget: the knapsack among levels on this budget's side of the neighbour's.

    Args:
        problem: Costs and budget.
        curves: Loss of every level of every module alone.
        neighbour: The answer at another budget; every module stays at its level there or moves toward this budget.

    Raises:
        BudgetError: no such allocation exists.
    """
    cost, budget = problem.cost, problem.budget
    shrink = cost.of(neighbour) - cost.fixed > budget.upper
    allowed = [
        [at for at, amount in enumerate(row) if (amount <= row[level] if shrink else amount >= row[level])]
        for row, level in zip(cost.costs, neighbour, strict=True)
    ]
    choice = solve_knapsack(
        [[curve[at] for at in places] for curve, places in zip(curves, allowed, strict=True)],
        [[row[at] for at in places] for row, places in zip(cost.costs, allowed, strict=True)],
        budget.lower,
        budget.upper,
        words=budget.words,
    )
    return tuple(places[at] for places, at in zip(allowed, choice, strict=True))


def uniform_allocations(problem: Problem) -> list[Allocation]:
    """Every way to give all attention modules one level and all MLPs another that uses the budget as fully as it goes.

    For each attention level the widest MLP level that fits is taken. Where modules differ in size (a model that was
    pruned before), levels correspond by the share of the module that they keep.

    Args:
        problem: Space, costs and budget; equal layers keep its upper bound, and not always its lower one.

    Raises:
        BudgetError: not even one fits.
    """
    space, cost = problem.space, problem.cost
    cut = [index for index, module in enumerate(space.modules) if len(module.levels) > 1]
    attention = [index for index in cut if space.modules[index].kind == "attention"]
    mlp = [index for index in cut if space.modules[index].kind == "mlp"]
    choices = _shares(space, attention) or [0.0]
    found: list[Allocation] = []
    for share in choices:
        best: Allocation | None = None
        for width in _shares(space, mlp) or [0.0]:
            candidate = list(space.dense)
            for index in attention:
                candidate[index] = _level_at(space, index, share)
            for index in mlp:
                candidate[index] = _level_at(space, index, width)
            if cost.of(candidate) <= problem.budget.limit:
                best = tuple(candidate)
        if best is not None and best not in found:
            found.append(best)
    if not found:
        raise BudgetError(f"no uniform model has at most {cost.words(problem.budget.limit)}")
    return found


def _shares(space: SearchSpace, indices: Sequence[int]) -> list[float]:
    """Shares of a module's levels that can be told apart, growing."""
    shares = {
        level / (len(space.modules[index].levels) - 1) for index in indices for level in range(space.dense[index] + 1)
    }
    return sorted(shares)


def _level_at(space: SearchSpace, index: int, share: float) -> int:
    return int(share * (len(space.modules[index].levels) - 1) + 1e-9)
