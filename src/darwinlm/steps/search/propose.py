"""Proposals: the first parent, and the level switch.

The first parent has equal layers; a knapsack serves other methods. The
paper's switch (DarwinLM §3.2, Algorithm 1) trades one level between two modules of the same kind. In ours any modules
may trade, and steps may span several levels. Afterwards the allocation is brought back within its bounds, one level at
a time.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from darwinlm.model.units.space import Allocation, PerLevel, uniform_sizes
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.budget.problem import Budget, Problem
from darwinlm.steps.search.knapsack import solve_knapsack
from darwinlm.steps.search.state import SearchState


def knapsack_start(problem: Problem, losses: PerLevel) -> Allocation:
    """The allocation with the lowest sum of losses within the budget. Raises BudgetError.

    Losses are those of single modules, or local errors as in ZipLM (arXiv 2302.04089).
    """
    costs, budget = problem.cost.costs, problem.budget
    # One solution in all processes: losses may differ in their last digits where processors do.
    return parallel.decide(partial(solve_knapsack, losses, costs, budget.lower, budget.upper, words=budget.words))


def uniform_start(problem: Problem, losses: PerLevel, uniform: Allocation, rng: random.Random) -> Allocation:
    """Equal layers, adjusted to use up the budget. Raises BudgetError if no allocation lies within the bounds."""
    try:
        return filled(uniform, problem.cost.costs, problem.budget, rng)
    except BudgetError:  # few large levels: single random steps can miss the bounds
        return knapsack_start(problem, losses)


def uniform_allocations(problem: Problem) -> list[Allocation]:
    """Uniform allocations: one level for all attention modules, one for all MLPs, as large as the budget allows.

    For each attention level, and each number of experts of a mixture, the widest MLP level within the budget is chosen.
    They respect the budget's upper bound, but not always the lower one. Raises BudgetError if no uniform allocation
    fits.
    """
    cost, limit = problem.cost, problem.budget.limit
    fitting = ([size for size in sizes if cost.of(size) <= limit] for sizes in uniform_sizes(problem.space))
    uniform = list(dict.fromkeys(sizes[-1] for sizes in fitting if sizes))
    if not uniform:
        raise BudgetError(f"no uniform model has at most {cost.words(limit)}")
    return uniform


ATTEMPTS = 200


def level_switch(
    parent: Allocation,
    costs: Sequence[Sequence[int]],
    budget: Budget,
    rng: random.Random,
    *,
    step: float,
    seen: frozenset[Allocation] | set[Allocation] = frozenset(),
) -> Allocation:
    """A new neighbour of the parent within the budget.

    If costs don't grow with the level (on a lattice, or measured), a step goes to the level with the next cost. `step`
    is the longest switch as a share of a module's levels; at least one level is allowed. Allocations in `seen` are
    excluded. Raises BudgetError if no new neighbour was found.
    """
    orders = [sorted(range(len(row)), key=row.__getitem__) for row in costs]
    sorted_costs = [[row[level] for level in order] for row, order in zip(costs, orders, strict=True)]
    ranks = [order.index(level) for level, order in zip(parent, orders, strict=True)]
    for _ in range(ATTEMPTS):
        moved_ranks = _switched(ranks, sorted_costs, budget, rng, step)
        if moved_ranks is None:
            continue
        child = tuple(order[rank] for order, rank in zip(orders, moved_ranks, strict=True))
        if child != parent and child not in seen:
            return child
    raise _exhausted(budget)


def paper_switch(
    parent: Allocation,
    costs: Sequence[Sequence[int]],
    kinds: Sequence[Hashable],
    budget: Budget,
    rng: random.Random,
    *,
    seen: frozenset[Allocation] | set[Allocation] = frozenset(),
) -> Allocation:
    """The paper's switch: one module shrinks by a level, another of the same kind grows by one; one to three times.

    Allocations in `seen` are excluded. Raises BudgetError if no new neighbour was found.
    """
    for _ in range(ATTEMPTS * 5):
        child = list(parent)
        for _ in range(min(rng.randint(1, 3), rng.randint(1, 3))):
            givers = [i for i, level in enumerate(child) if level > 0]
            if not givers:
                break
            giver = rng.choice(givers)
            takers = [
                i
                for i, level in enumerate(child)
                if i != giver and kinds[i] == kinds[giver] and level + 1 < len(costs[i])
            ]
            if takers:
                child[giver] -= 1
                child[rng.choice(takers)] += 1
        total = sum(row[level] for row, level in zip(costs, child, strict=True))
        switched = tuple(child)
        if switched != parent and switched not in seen and budget.allows(total):
            return switched
    raise _exhausted(budget)


def switched_children(state: SearchState, seed: int, count: int, switch: Callable[..., Allocation]) -> list[Allocation]:
    """Up to `count` new allocations from a level switch, which lacks its random numbers and `seen`."""
    rng = random.Random(f"{seed}:{state.done}")  # noqa: S311
    seen = set(state.seen)
    children: list[Allocation] = []
    with contextlib.suppress(BudgetError):  # All neighbours have been tried.
        for _ in range(count):
            children.append(switch(rng, seen=seen))
            seen.add(children[-1])
    return children


def filled(allocation: Allocation, costs: Sequence[Sequence[int]], budget: Budget, rng: random.Random) -> Allocation:
    """An allocation brought within its bounds by single levels of random modules; unchanged if it is within them.

    Raises:
        BudgetError: No such allocation was found.
    """
    if budget.allows(sum(row[level] for row, level in zip(costs, allocation, strict=True))):
        return allocation
    return level_switch(allocation, costs, budget, rng, step=0.0)


def _exhausted(budget: Budget) -> BudgetError:
    return BudgetError(
        f"no new allocation between {budget.words} was found near the best one: raise budget.tolerance or choose "
        "smaller units"
    )


def _switched(
    ranks: Sequence[int], costs: Sequence[Sequence[int]], budget: Budget, rng: random.Random, step: float
) -> list[int] | None:
    """One attempt, in ranks of cost; None if it misses the bounds."""
    child = list(ranks)
    for index in rng.sample(range(len(child)), k=min(len(child), rng.choice((1, 1, 2, 3)))):
        longest = max(1, round(step * (len(costs[index]) - 1)))
        level = child[index] + rng.choice((-1, 1)) * rng.randint(1, longest)
        child[index] = min(max(level, 0), len(costs[index]) - 1)
    moved = {i for i, (a, b) in enumerate(zip(child, ranks, strict=True)) if a != b}
    return child if _repair(child, costs, budget, rng, moved) else None


def _repair(
    child: list[int], costs: Sequence[Sequence[int]], budget: Budget, rng: random.Random, moved: set[int]
) -> bool:
    """Bring the total within the bounds by single levels of modules that haven't moved; False on failure."""
    total = sum(costs[i][level] for i, level in enumerate(child))
    others = [i for i in range(len(child)) if i not in moved] or list(range(len(child)))
    # A few modules take the whole correction, since a change of all modules would lose the parent's qualities.
    partners = rng.sample(others, k=min(len(others), rng.choice((1, 2, 3))))

    def change(index: int, direction: int) -> int:
        return costs[index][child[index] + direction] - costs[index][child[index]]

    for pool in (partners, others):
        for _ in range(4 * len(pool) * 64):
            if budget.allows(total):
                return True
            direction = 1 if total < budget.lower else -1
            options = [i for i in pool if 0 <= child[i] + direction < len(costs[i])]
            options = [i for i in options if direction < 0 or total + change(i, direction) <= budget.upper]
            if not options:
                break
            index = rng.choice(options)
            total += change(index, direction)
            child[index] += direction
    return budget.allows(total)
