"""First parents: equal layers, or the result at a neighbouring budget; knapsack and random levels for other methods."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import product

from darwinlm.database.levels import ModuleLevels
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation, PerLevel
from darwinlm.search.propose.level_switch import filled


def knapsack_start(problem: Problem, losses: PerLevel) -> Allocation:
    """The allocation with the lowest sum of losses within the budget. Raises BudgetError.

    Losses are those of single modules, or local errors as in ZipLM (arXiv 2302.04089).
    """
    cost, budget = problem.cost, problem.budget
    return solve_knapsack(losses, cost.costs, budget.lower, budget.upper, words=budget.words)


def uniform_start(problem: Problem, losses: PerLevel, uniform: Allocation, rng: random.Random) -> Allocation:
    """Equal layers, adjusted to use up the budget. Raises BudgetError if no allocation lies within the bounds."""
    try:
        return filled(uniform, problem.cost.costs, problem.budget, rng)
    except BudgetError:  # few large levels: single random steps can miss the bounds
        return knapsack_start(problem, losses)


def random_start(problem: Problem, rng: random.Random) -> Allocation:
    """Random levels, brought within the budget. Raises BudgetError."""
    anywhere = tuple(rng.randrange(len(module.levels)) for module in problem.space.modules)
    return filled(anywhere, problem.cost.costs, problem.budget, rng)


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
    choice = solve_knapsack(
        [[row[at] for at in places] for row, places in zip(losses, allowed, strict=True)],
        [[row[at] for at in places] for row, places in zip(cost.costs, allowed, strict=True)],
        budget.lower,
        budget.upper,
        words=budget.words,
    )
    return tuple(places[at] for places, at in zip(allowed, choice, strict=True))


def uniform_allocations(problem: Problem) -> list[Allocation]:
    """Uniform allocations: one level for all attention modules, one for all MLPs, as large as the budget allows.

    For each attention level, and each number of experts of a mixture, the widest MLP level within the budget is chosen.
    If modules differ in size (in a pruned model), levels correspond by the share of the module that they keep. They
    respect the budget's upper bound, but not always the lower one. Raises BudgetError if no uniform allocation fits.
    """
    space, cost = problem.space, problem.cost
    cut = [index for index, module in enumerate(space.modules) if len(module.levels) > 1]
    attention = [index for index in cut if space.modules[index].kind == "attention"]
    mlp = [index for index in cut if space.modules[index].kind == "mlp"]
    heads = {index: list(range(len(space.modules[index].levels))) for index in attention}
    uniform: list[Allocation] = []
    # Shares of experts that mixtures may keep, ascending; only 1 if there is no mixture.
    levels = ((level, space.modules[index].levels[-1]) for index in mlp for level in space.modules[index].levels)
    parts = sorted({level.experts / full.experts for level, full in levels if level.experts}) or [1.0]
    for share, part in product(_shares(heads.values()), parts):
        best: Allocation | None = None
        widths = {index: _of_experts(space.modules[index], part) for index in mlp}
        for width in _shares(widths.values()):
            candidate = list(space.dense)
            for index, places in heads.items():
                candidate[index] = _place_at(places, share)
            for index, places in widths.items():
                candidate[index] = _place_at(places, width)
            if cost.of(candidate) <= problem.budget.limit:
                best = tuple(candidate)
        if best is not None and best not in uniform:
            uniform.append(best)
    if not uniform:
        raise BudgetError(f"no uniform model has at most {cost.words(problem.budget.limit)}")
    return uniform


def _of_experts(module: ModuleLevels, part: float) -> list[int]:
    """Level indices of a module, ascending; for a mixture only those with this share of its experts, and 0."""
    full = module.levels[-1].experts
    counts = sorted({level.experts for level in module.levels if level.experts})
    count = min(counts, key=lambda each: (abs(each - part * full), -each), default=0)
    return [place for place, level in enumerate(module.levels) if level.experts in (0, count)]


def _shares(modules: Iterable[Sequence[int]]) -> list[float]:
    """Distinct relative positions in the lists of level indices, ascending; only 0 if there are none."""
    return sorted({at / (len(places) - 1) for places in modules for at in range(len(places))}) or [0.0]


def _place_at(places: Sequence[int], share: float) -> int:
    return places[int(share * (len(places) - 1) + 1e-9)]
