"""Which process factorises and writes each block: blocks are shared by their cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.units.levels import variants
from darwinlm.model.units.unit_settings import UnitsSettings


def orders_of(shape: ModuleShape, units: UnitsSettings) -> int:
    """Number of removal orders of a module: one for each expert and each variant, and one that ranks heads."""
    count = len(variants(shape, units)) if shape.kind != "mlp" else 1
    return count + 1 if count > 1 else max(shape.sizes.experts, 1)


def factor_operations(shape: ModuleShape, units: UnitsSettings, outputs: float) -> float:
    """Operations of the removal orders, factors and errors of a module with so many outputs."""
    d = float(shape.sizes.width)
    return orders_of(shape, units) * (10 / 3 * d**3 + 4 * d * d * outputs)


def owners(costs: Sequence[float], processes: int) -> list[int]:
    """The process of each block.

    Of as many consecutive blocks as there are processes, each process gets one, so that all work at the same time. The
    costliest goes to the process with the least work so far.
    """
    done, chosen = [0.0] * processes, [0] * len(costs)
    for first in range(0, len(costs), processes):
        together = range(first, min(first + processes, len(costs)))
        free = sorted(range(processes), key=done.__getitem__)
        for block, process in zip(sorted(together, key=lambda block: -costs[block]), free, strict=False):
            chosen[block] = process
            done[process] += costs[block]
    return chosen


def block_owner(
    shapes: Sequence[ModuleShape], units: UnitsSettings, outputs: float, blocks: int, processes: int, skip: int = 0
) -> Callable[[int], int]:
    """The process of each block of a model, from its modules with so many outputs; the first `skip` have no work."""
    costs = [0.0] * blocks
    for shape in shapes:
        costs[shape.block] += 0.0 if shape.fixed else factor_operations(shape, units, outputs)
    chosen = [block % processes for block in range(skip)] + owners(costs[skip:], processes)
    return chosen.__getitem__
