"""Allocations without an evolutionary search: uniform, random, whole blocks, local errors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from darwinlm.model.families.parts import KINDS
from darwinlm.model.units.space import Allocation
from darwinlm.runtime.errors import BudgetError, FamilyError
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search.propose import filled, knapsack_start, uniform_allocations

Loss = Callable[[Allocation], float]


def best_uniform(problem: Problem, loss: Loss) -> Allocation:
    """The uniform allocation with the lowest loss. Raises BudgetError if none fits."""
    return min(uniform_allocations(problem), key=loss)


def even_uniform(problem: Problem) -> Allocation:
    """The uniform allocation with the most similar shares of attention and MLP.

    Sheared-LLaMA needs a target shape beforehand; this one needs no measurement.
    """
    space = problem.space

    def unevenness(allocation: Allocation) -> tuple[float, int]:
        kept = dict.fromkeys(KINDS, 0)
        dense = dict.fromkeys(KINDS, 0)
        for module, level in zip(space.modules, space.levels(allocation), strict=True):
            kept[module.kind] += level.params
            dense[module.kind] += module.levels[-1].params
        shares = [kept[kind] / dense[kind] for kind in kept if dense[kind] and kind not in ("mixer", "tail")]
        return max(shares) - min(shares), -space.params(allocation)

    return min(uniform_allocations(problem), key=unevenness)


def best_random(
    problem: Problem, loss: Loss, *, tries: int, seed: int, seconds: float | None = None
) -> tuple[Allocation, int]:
    """The best of several random allocations, and the number of draws. Raises BudgetError if none fits.

    `tries` counts without a time limit; with one, as many as fit into `seconds` are drawn, at least one. Duplicates are
    evaluated once.
    """
    rng = random.Random(seed)  # noqa: S311
    begun = time.monotonic()
    losses: dict[Allocation, float] = {}
    drawn = 0
    while not drawn or (drawn < tries if seconds is None else time.monotonic() - begun < seconds):
        anywhere = tuple(rng.randrange(len(module.levels)) for module in problem.space.modules)
        allocation = filled(anywhere, problem.cost.costs, problem.budget, rng)
        drawn += 1
        if allocation not in losses:
            losses[allocation] = loss(allocation)
    return min(losses, key=losses.__getitem__), drawn


def least_local_error(problem: Problem, database: DatabaseReader) -> Allocation:
    """The allocation with the lowest sum of relative local errors within the budget.

    ZipLM's structured SPDY search minimises the same sum by a dynamic programme over discretised costs (arXiv
    2302.04089, section 3.2). Here a multiple-choice knapsack with the exact costs minimises it.
    """
    return knapsack_start(problem, database.local_errors(problem.space))


def equal_experts(problem: Problem) -> Allocation:
    """The largest equal number of whole experts within the budget; other modules stay dense.

    Raises BudgetError, or FamilyError if the model has no mixture of experts.
    """
    space, cost = problem.space, problem.cost
    counts = {level.sizes.experts for module in space.modules for level in module.levels} - {0}
    if not counts:
        raise FamilyError("reap and frequency rank experts, but this model has no mixture of experts: leave them out")
    for count in sorted(counts, reverse=True):
        allocation = list(space.dense)
        for index, module in enumerate(space.modules):
            full = module.levels[-1].sizes
            if full.experts:
                whole = [at for at, level in enumerate(module.levels) if level.sizes.width == full.width]
                allocation[index] = max(at for at in whole if module.levels[at].sizes.experts <= count)
        if cost.of(allocation) <= problem.budget.limit:
            return tuple(allocation)
    raise BudgetError(
        "reap and frequency keep the same number of whole experts in every block, and none fits into "
        f"{cost.words(problem.budget.limit)}: leave them out"
    )


def without_blocks(problem: Problem, influence: Sequence[float]) -> Allocation:
    """Removal of whole blocks by ascending influence until the budget is kept (ShortGPT, section 3.3).

    Up to the size of a block may remain unused. Raises BudgetError if blocks contain modules that are never cut.
    """
    space, cost, budget = problem.space, problem.cost, problem.budget
    if any(len(module.levels) == 1 for module in space.modules):
        raise BudgetError(
            "this model has modules that are never cut, so whole blocks can't be removed: leave shortgpt out"
        )
    allocation = space.dense
    for block in sorted(range(len(influence)), key=lambda index: (influence[index], index)):
        if cost.of(allocation) <= budget.limit:
            break
        levels = zip(space.modules, allocation, strict=True)
        allocation = tuple(0 if module.block == block else level for module, level in levels)
    if not space.params(allocation):
        raise BudgetError(
            f"shortgpt removes whole blocks, and even a single one exceeds {cost.words(budget.limit)}: leave shortgpt "
            "out"
        )
    return allocation
