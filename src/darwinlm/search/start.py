"""The first parent: from single-module losses, uniform, or random."""

from __future__ import annotations

import random
from collections.abc import Sequence

from darwinlm.errors import BudgetError
from darwinlm.search.knapsack import solve_knapsack
from darwinlm.search.mutation import level_switch
from darwinlm.search.scores import Scores
from darwinlm.search.space import Allocation, ParamBudget, SearchSpace


def costs_of(space: SearchSpace) -> list[list[int]]:
    """Parameters of each level of each module."""
    return [[level.params for level in module.levels] for module in space.modules]


def knapsack_start(space: SearchSpace, budget: ParamBudget, scores: Scores) -> Allocation:
    """The allocation with the least sum of single-module losses within the budget. Raises BudgetError."""
    return solve_knapsack(scores, costs_of(space), budget.lower, budget.upper)


def random_start(space: SearchSpace, budget: ParamBudget, rng: random.Random) -> Allocation:
    """Random levels, brought within the budget. Raises BudgetError."""
    anywhere = tuple(rng.randrange(len(module.levels)) for module in space.modules)
    return level_switch(anywhere, costs_of(space), budget, rng, step=0.0)


def uniform_allocations(space: SearchSpace, budget: ParamBudget) -> list[Allocation]:
    """Every way to give all attention modules one level and all MLPs another that uses the budget as fully as it goes.

    For each attention level the widest MLP level that fits is taken. Where modules differ in size (a model that was
    pruned before), levels correspond by the share of the module that they keep.

    Args:
        space: modules and levels.
        budget: its upper bound is kept; its lower bound isn't always within reach of equal layers.

    Raises:
        BudgetError: not even one fits.
    """
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
            if space.params(candidate) <= budget.upper:
                best = tuple(candidate)
        if best is not None and best not in found:
            found.append(best)
    if not found:
        raise BudgetError(f"no uniform model has at most {budget.upper:,} block parameters")
    return found


def _shares(space: SearchSpace, indices: Sequence[int]) -> list[float]:
    """Shares of a module's levels that can be told apart, growing."""
    shares = {
        level / (len(space.modules[index].levels) - 1) for index in indices for level in range(space.dense[index] + 1)
    }
    return sorted(shares)


def _level_at(space: SearchSpace, index: int, share: float) -> int:
    return int(share * (len(space.modules[index].levels) - 1) + 1e-9)
