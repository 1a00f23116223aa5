"""Loss at a size, predicted from the database alone, before any search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.database.store import DatabaseReader
from darwinlm.search.predict.module_losses import estimated_losses
from darwinlm.search.problem.cost import parameter_costs
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.search.problem.space import Allocation, SearchSpace

FACTOR, POWER = 1.4, 0.77
"""Loss of a whole model from the sum s of its modules' losses: 1.4 s^0.77. Fitted to nine runs of SmolLM2-135M-Instruct
with 90 to 35 % of its block parameters, which lie within 17 % of it (notebook, "Predicted losses of whole models")."""


@dataclass(frozen=True)
class PredictedSize:
    """A size and its predicted loss.

    Attributes:
        share: Largest share of the block parameters.
        params: Block parameters of the best allocation within this share.
        kl: Predicted one-shot KL(dense ‖ smaller) on held-out text, in nats per token.
    """

    share: float
    params: int
    kl: float
    allocation: Allocation


def predicted_sizes(
    space: SearchSpace, database: DatabaseReader, shares: Sequence[float], *, seconds: float = 30
) -> list[PredictedSize]:
    """Losses of several sizes, from the lowest sum of single-module losses.

    Shares must be above the smallest possible one. `seconds` limits each share; the best allocation until then counts.

    Returns:
        One for each share; none where the database has no estimates.

    Raises:
        BudgetError: A share can't be met.
    """
    losses = estimated_losses(space, database)
    if losses is None:
        return []
    cost = parameter_costs(space)
    sizes = []
    for share in shares:
        allocation = solve_knapsack(losses, cost.costs, 0, int(share * cost.dense), seconds=seconds)
        alone = sum(row[level] for row, level in zip(losses, allocation, strict=True))
        sizes.append(PredictedSize(share, cost.of(allocation), FACTOR * alone**POWER, allocation))
    return sizes
