"""Widths and types of a file together: how much of a bound on the file types save, and how much pruning.

A byte has one price. At a given price, every tensor of every level takes the type with the least sum of its loss and
the price of its bytes. Pruning makes up the rest: the levels with the least sum of single-module losses within the
bound. The price with the least predicted loss of both wins, and its types give the costs that the search works with.

A tensor's loss in a type, known for the dense model, shrinks with the share of its weights that a level keeps.

Source: ours. Lagrange multipliers for choices under one constraint are Everett's (1963).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from darwinlm.search.predict.module_losses import FACTOR, POWER
from darwinlm.search.problem.space import Allocation, PerLevel

Types = Mapping[str, tuple[int, float]]
"""Bytes of a tensor and its loss, by type."""
PRICES = np.geomspace(1e-12, 1e-5, 71)
"""Prices of a byte that are tried, in nats."""
ADDED = 0.5
"""Weight of rounding in the choice of levels: losses of single modules count about twice once they are combined."""
HALVINGS = 60


@dataclass(frozen=True)
class FileCosts:
    """The best price of a byte, and what follows from it.

    Attributes:
        costs: Bytes of every level of every module.
        fixed: Bytes of everything else.
        allocation: Levels before any search.
        kl: Predicted loss of the model in its file, in nats per token, before any refit.
        alone: Predicted loss if types alone keep the bound; None if they can't.
    """

    costs: tuple[tuple[int, ...], ...]
    fixed: int
    allocation: Allocation
    kl: float
    alone: float | None


def file_costs(
    losses: PerLevel, tensors: Sequence[Sequence[Sequence[Types]]], outside: Sequence[Types], fixed: int, bound: int
) -> FileCosts | None:
    """Find the price of a byte.

    Args:
        losses: Single-module losses of every level of every module.
        tensors: Tensors of every level of every module.
        outside: Tensors that aren't pruned.
        fixed: Bytes without any tensors that have a choice.
        bound: Largest size of the file in bytes.

    Returns:
        None if not even the smallest levels in the smallest types are small enough.
    """
    best: FileCosts | None = None
    alone: float | None = None
    for price in PRICES:
        rows = [[_cheapest(level, price) for level in module] for module in tensors]
        rest, rest_loss = _cheapest(outside, price)
        costs = [np.array([cost for cost, _ in row]) for row in rows]
        rounding = [np.array([loss for _, loss in row]) for row in rows]
        room = bound - fixed - rest
        dense = [len(row) - 1 for row in rows]
        if _total(costs, dense) <= room:
            loss = rest_loss + _total(rounding, dense)
            alone = loss if alone is None else min(alone, loss)
        levels = _levels(
            [np.asarray(row) + ADDED * more for row, more in zip(losses, rounding, strict=True)], costs, room
        )
        if levels is None:
            continue
        pruning = FACTOR * max(_total([np.asarray(row) for row in losses], levels), 0.0) ** POWER
        kl = pruning + rest_loss + _total(rounding, levels)
        if best is None or kl < best.kl:
            whole = tuple(tuple(int(cost) for cost in row) for row in costs)
            best = FileCosts(whole, fixed + int(rest), tuple(levels), float(kl), None)
    return None if best is None else FileCosts(best.costs, best.fixed, best.allocation, best.kl, alone)


def _cheapest(tensors: Sequence[Types], price: float) -> tuple[int, float]:
    """Bytes and loss of tensors in the types with the least sum of loss and price."""
    chosen = [min(types.values(), key=lambda each: each[1] + price * each[0]) for types in tensors]
    return sum(size for size, _ in chosen), sum(loss for _, loss in chosen)


def _levels(losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], room: float) -> list[int] | None:
    """Levels with a small sum of losses whose costs fit into `room`; None if the smallest don't."""
    low, high = 0.0, 1.0

    def at(price: float) -> list[int]:
        return [int((loss + price * cost).argmin()) for loss, cost in zip(losses, costs, strict=True)]

    if _total(costs, at(low)) <= room:
        return at(low)
    if _total(costs, at(high)) > room:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _total(costs, at(middle)) <= room else (middle, high)
    return at(high)


def _total(rows: Sequence[np.ndarray], levels: Sequence[int]) -> float:
    return float(sum(row[level] for row, level in zip(rows, levels, strict=True)))
