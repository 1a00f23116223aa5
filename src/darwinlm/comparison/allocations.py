"""Allocations without an evolutionary search: uniform, random, whole blocks, local errors."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from darwinlm.database.store import DatabaseReader
from darwinlm.errors import BudgetError
from darwinlm.search.predict.module_losses import local_errors
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation
from darwinlm.search.propose.start import knapsack_start, random_start, uniform_allocations

Loss = Callable[[Allocation], float]


def best_uniform(problem: Problem, loss: Loss) -> Allocation:
    """Of all ways to cut every layer alike, the one with the least loss. Raises BudgetError when none fits."""
    return min(uniform_allocations(problem), key=loss)


def even_uniform(problem: Problem) -> Allocation:
    """Of all ways to cut every layer alike, the one that keeps most nearly the same share of attention and of MLP.

    Sheared-LLaMA's target is a shape that is given beforehand; this is one that needs no measurement.
    """
    space = problem.space

    def unevenness(allocation: Allocation) -> tuple[float, int]:
        kept = {"attention": 0, "mlp": 0}
        dense = {"attention": 0, "mlp": 0}
        for module, level in zip(space.modules, space.levels(allocation), strict=True):
            kept[module.kind] += level.params
            dense[module.kind] += module.levels[-1].params
        shares = [kept[kind] / dense[kind] for kind in kept if dense[kind]]
        return max(shares) - min(shares), -space.params(allocation)

    return min(uniform_allocations(problem), key=unevenness)


def best_random(
    problem: Problem,
    loss: Loss,
    *,
    tries: int,
    seed: int,
    seconds: float | None = None,
) -> tuple[Allocation, int]:
    """The best of so many random allocations, or of as many as there is time for.

    Args:
        problem: Space, costs and budget, whose bounds are kept.
        loss: Loss of an allocation.
        tries: Number of draws; duplicates are evaluated once.
        seed: Seed of the draws.
        seconds: Wall-clock after which no further one is drawn; at least one is.

    Returns:
        The allocation, and how many were drawn.

    Raises:
        BudgetError: None fits.
    """
    rng = random.Random(seed)  # noqa: S311
    begun = time.monotonic()
    losses: dict[Allocation, float] = {}
    drawn = 0
    while drawn < tries and (not drawn or seconds is None or time.monotonic() - begun < seconds):
        allocation = random_start(problem, rng)
        drawn += 1
        if allocation not in losses:
            losses[allocation] = loss(allocation)
    return min(losses, key=losses.__getitem__), drawn


def least_local_error(problem: Problem, database: DatabaseReader) -> Allocation:
    """The allocation with the least sum of relative local errors within the budget.

    ZipLM's structured SPDY search minimises the same sum by a dynamic programme over discretised costs (arXiv
    2302.04089, section 3.2); here it is solved as a multiple-choice knapsack on the exact costs.
    """
    return knapsack_start(problem, local_errors(problem.space, database))


def equal_experts(problem: Problem) -> Allocation:
    """As many whole experts in every mixture as the budget allows, all else as it is. Raises BudgetError."""
    space, cost = problem.space, problem.cost
    counts = {level.experts for module in space.modules for level in module.levels}
    for count in sorted(counts - {0}, reverse=True):
        allocation = list(space.dense)
        for index, module in enumerate(space.modules):
            full = module.levels[-1]
            if full.experts:
                whole = [at for at, level in enumerate(module.levels) if level.width == full.width]
                allocation[index] = max(at for at in whole if module.levels[at].experts <= count)
        if cost.of(allocation) <= problem.budget.limit:
            return tuple(allocation)
    raise BudgetError(
        f"with units.experts and the experts that a token is sent to, no equal number of whole experts has at most "
        f"{cost.words(problem.budget.limit)}: leave reap and frequency out"
    )


def without_blocks(problem: Problem, influence: Sequence[float]) -> Allocation:
    """Whole blocks removed, those of least influence first, until the budget is kept (ShortGPT, section 3.3).

    Args:
        problem: Space, costs and budget; how much of it stays unused depends on the size of a block.
        influence: Influence of each block.

    Raises:
        BudgetError: Blocks hold modules that are never cut.
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
        raise BudgetError(f"not even one whole block has at most {cost.words(budget.limit)}: leave shortgpt out")
    return allocation
