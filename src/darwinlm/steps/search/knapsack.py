"""The multiple-choice knapsack: one level for each module with the lowest total loss within the budget.

Dynamic programming finds it (Kellerer, Pferschy and Pisinger, *Knapsack Problems*, 2004, chapter 11): costs have a
large common divisor, because levels are whole heads and channels, so that there are few different totals. A solver of
integer programs takes 0.1 to 28 seconds for a model of 7B, in which many choices are nearly as good as the best one;
this takes a tenth of a second. Puzzle (arXiv 2411.19146) chooses its blocks by the same problem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from darwinlm.runtime.errors import BudgetError

TABLE = 1 << 26
"""Most entries of the table of choices: two bytes for each module and total."""
CELLS = 1 << 17
"""Totals that are told apart if there are too many. A module's cost is then rounded up, by half a cell on average."""

Whole = NDArray[np.int64]


def solve_knapsack(
    losses: Sequence[Sequence[float]],
    costs: Sequence[Sequence[int]],
    lower: int,
    upper: int,
    *,
    words: str | None = None,
) -> tuple[int, ...]:
    """Choose a level for each module: the best choice, or a good one if the costs have no common divisor.

    `words` are the bounds as messages should show them; None shows block parameters. Raises BudgetError if no choice
    lies within the bounds.
    """
    # Only differences within a module matter, in units of their common divisor.
    base = sum(min(row) for row in costs)
    extra = [np.asarray(row, dtype=np.int64) - min(row) for row in costs]
    divisor = max(math.gcd(*(int(cost) for row in extra for cost in row)), 1)
    units = [row // divisor for row in extra]
    most = sum(int(row.max()) for row in units)
    low, high = max(-((base - lower) // divisor), 0), min((upper - base) // divisor, most)
    fine = TABLE // len(units)
    for cells in [high] if high <= fine else [CELLS, fine]:
        if low <= high and (choice := _solved(losses, units, low, high, cells)) is not None:
            return choice
    raise BudgetError(
        f"no choice of levels lies between {words or f'{lower:,} and {upper:,} block parameters'}: raise "
        "budget.tolerance or choose smaller units"
    )


def _solved(
    losses: Sequence[Sequence[float]], costs: Sequence[Whole], low: int, high: int, cells: int
) -> tuple[int, ...] | None:
    """The best choice with a total from `low` to `high`, of which so many cells are told apart; None without one."""
    sizes = costs if cells == high else [-(-row * cells // high) for row in costs]
    largest = [min(int(size.max()), cells) for size in sizes]
    least = low if cells == high else low * cells // high
    best, reached = np.full(cells + 1, np.inf), 0
    best[0] = 0.0
    table = np.zeros((len(sizes), cells + 1), dtype=np.int16)
    totals, fewer = np.empty(cells + 1), np.empty(cells + 1, dtype=bool)
    for module, (loss, size) in enumerate(zip(losses, sizes, strict=True)):
        following = np.full(cells + 1, np.inf)
        needed = least - sum(largest[module + 1 :])  # smaller totals can't reach the lower bound any more
        for level, (added, cells_of_it) in enumerate(zip(loss, size.tolist(), strict=True)):
            begin, end = max(needed, cells_of_it), min(reached + cells_of_it, cells)
            if begin > end:
                continue
            here = slice(begin, end + 1)
            total = np.add(best[begin - cells_of_it : end - cells_of_it + 1], added, out=totals[: end - begin + 1])
            better = np.less(total, following[here], out=fewer[: end - begin + 1])
            np.copyto(following[here], total, where=better)
            np.copyto(table[module, here], level, where=better)
        best, reached = following, min(reached + largest[module], cells)
    ends = np.flatnonzero(np.isfinite(best))
    choices = _traced(table, sizes, ends)
    exact = sum((row[choice] for row, choice in zip(costs, choices, strict=True)), np.zeros(len(ends), dtype=np.int64))
    allowed = np.flatnonzero((low <= exact) & (exact <= high))
    if not len(allowed):
        return None
    chosen = allowed[best[ends[allowed]].argmin()]
    return tuple(int(choice[chosen]) for choice in choices)


def _traced(table: NDArray[np.int16], sizes: Sequence[Whole], ends: NDArray[np.intp]) -> list[NDArray[np.int16]]:
    """The level of each module in the choices that end in some cells."""
    choices: list[NDArray[np.int16]] = []
    left = ends
    for row, size in zip(table[::-1], reversed(sizes), strict=True):
        choices.append(row[left])
        left = left - size[choices[-1]]
    return choices[::-1]
