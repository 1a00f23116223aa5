"""Level switch under the exact budget: some modules give, others take (DarwinLM §3.2, Algorithm 1).

The paper's switch trades one level between two modules of the same kind. Here any modules may trade, and steps may be
longer than one level; afterwards the allocation is brought back within its bounds, one level at a time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from darwinlm.errors import BudgetError
from darwinlm.search.space import Allocation, ParamBudget

ATTEMPTS = 200


def level_switch(
    parent: Allocation,
    costs: Sequence[Sequence[int]],
    budget: ParamBudget,
    rng: random.Random,
    *,
    step: float,
    seen: frozenset[Allocation] | set[Allocation] = frozenset(),
) -> Allocation:
    """A neighbour of the parent that keeps the budget and hasn't been seen.

    Args:
        parent: level index of each module.
        costs: cost of each level of each module, growing.
        budget: bounds on the total cost.
        rng: source of randomness.
        step: longest switch as a share of a module's levels; at least one level.
        seen: allocations that aren't wanted again, the parent among them or not.

    Raises:
        BudgetError: no new neighbour was found; everything within reach has been seen.
    """
    for _ in range(ATTEMPTS):
        child = list(parent)
        for index in rng.sample(range(len(parent)), k=min(len(parent), rng.choice((1, 1, 2, 3)))):
            longest = max(1, round(step * (len(costs[index]) - 1)))
            child[index] = _clamp(child[index] + rng.choice((-1, 1)) * rng.randint(1, longest), costs[index])
        moved = {i for i, (a, b) in enumerate(zip(child, parent, strict=True)) if a != b}
        if _repair(child, costs, budget, rng, moved) and tuple(child) != parent and tuple(child) not in seen:
            return tuple(child)
    raise BudgetError(
        f"no new allocation within {budget.lower:,} to {budget.upper:,} block parameters was found near the best one: "
        "raise budget.tolerance, choose smaller units, or ask for fewer generations"
    )


def _clamp(level: int, costs: Sequence[int]) -> int:
    return min(max(level, 0), len(costs) - 1)


def _repair(
    child: list[int], costs: Sequence[Sequence[int]], budget: ParamBudget, rng: random.Random, moved: set[int]
) -> bool:
    """Bring the total within the bounds by single levels of modules that haven't moved; False when that fails."""
    total = sum(costs[i][level] for i, level in enumerate(child))
    others = [i for i in range(len(child)) if i not in moved] or list(range(len(child)))
    # A few partners carry the whole correction: spreading it over all modules would undo what made the parent good.
    partners = rng.sample(others, k=min(len(others), rng.choice((1, 2, 3))))
    for pool in (partners, others):
        for _ in range(4 * len(pool) * 64):
            if budget.allows(total):
                return True
            direction = 1 if total < budget.lower else -1
            options = _steps(child, costs, pool, direction, total, budget)
            if not options:
                break
            index = rng.choice(options)
            total += costs[index][child[index] + direction] - costs[index][child[index]]
            child[index] += direction
    return budget.allows(total)


def _steps(
    child: list[int],
    costs: Sequence[Sequence[int]],
    pool: Sequence[int],
    direction: int,
    total: int,
    budget: ParamBudget,
) -> list[int]:
    """Modules of the pool that can move one level; upward only as far as the budget goes."""
    found = []
    for index in pool:
        level = child[index] + direction
        if 0 <= level < len(costs[index]):
            after = total + costs[index][level] - costs[index][child[index]]
            if direction < 0 or after <= budget.upper:
                found.append(index)
    return found
