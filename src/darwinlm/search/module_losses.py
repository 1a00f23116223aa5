"""Single-module losses: the loss of the whole model if a single module is at a level, and of whole models from them.

A database with output gradients estimates them to second order (`database/factors.py`), without running the model.
"""

from __future__ import annotations

from collections.abc import Sequence

from darwinlm.database.store import DatabaseReader
from darwinlm.search.knapsack import solve_knapsack
from darwinlm.units.cost import parameter_costs
from darwinlm.units.space import PerLevel, SearchSpace

FACTOR, POWER = 1.4, 0.77
"""Loss of a whole model from the sum s of its modules' losses: 1.4 s^0.77. Fitted to nine runs of SmolLM2-135M-Instruct
with 90 to 35 % of its block parameters, which lie within 17 % of it (notebook, "Predicted losses of whole models")."""


def local_errors(space: SearchSpace, database: DatabaseReader) -> PerLevel:
    """Relative local error of every level of every module."""
    return [[database.error(module.block, module.kind, level) for level in module.levels] for module in space.modules]


def estimated_losses(space: SearchSpace, database: DatabaseReader) -> PerLevel | None:
    """Estimated loss of every level of every module, in nats per token; None where the database has none."""
    losses: list[list[float]] = []
    for module in space.modules:
        row = [database.loss(module.block, module.kind, level) for level in module.levels]
        if any(loss is None for loss in row):
            return None
        losses.append([loss for loss in row if loss is not None])
    return losses


def predicted_losses(space: SearchSpace, database: DatabaseReader, shares: Sequence[float]) -> list[float]:
    """One-shot KL(dense ‖ smaller) of the best model of each size on held-out text, in nats per token.

    `shares` of the block parameters must be above the smallest possible one.

    Returns:
        One for each share, from the lowest sum of single-module losses; none where the database has no estimates.

    Raises:
        BudgetError: A share can't be met.
    """
    losses = estimated_losses(space, database)
    if losses is None:
        return []
    cost = parameter_costs(space)
    sums = []
    for share in shares:
        allocation = solve_knapsack(losses, cost.costs, 0, int(share * cost.dense))
        sums.append(sum(row[level] for row, level in zip(losses, allocation, strict=True)))
    return [FACTOR * alone**POWER for alone in sums]
