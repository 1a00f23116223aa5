"""Second-order effect of a change of levels on the loss, for each module separately.

The best output of a narrower level is a projection of the wider one. So between two nested levels l and p, the mean
squared change of the output is the difference of their squared errors. Under the second moment of the output gradients,
half of a squared error is the module's estimated loss f, in nats per token (`database/factors.py`), and

    curvature(l, p) = f_l + f_p - 2 s,    s = min(f_l |A ∩ B| / |A|, f_p |A ∩ B| / |B|).

A and B are the columns that the two levels remove, and s is the shared part of the errors. For nested levels the
curvature is |f_l - f_p|. If the levels remove disjoint columns, as two variants of an attention may, it is f_l + f_p.
The loss has no slope at the dense model, so the curvature between a level and the dense one is f itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from darwinlm.database.levels import ModuleLevels
from darwinlm.database.store import DatabaseReader
from darwinlm.families.shapes import ModuleShape
from darwinlm.search.problem.space import Allocation, PerLevel, SearchSpace


class Curvature:
    """Curvature between the levels of every module, in the unit of the losses.

    Args:
        losses: f, single-module loss of every level; 0 is dense.
        shared: For modules without nested levels, [levels l, levels p]: share of the columns removed by level l that
            level p removes too. None for the others.
    """

    def __init__(self, losses: PerLevel, shared: Sequence[np.ndarray | None]) -> None:
        self.losses = [np.asarray(row, dtype=np.float64) for row in losses]
        self.shared = shared

    def around(self, index: int, level: int) -> np.ndarray:
        """Curvature between every level of a module and this one."""
        f, shared = self.losses[index], self.shared[index]
        if shared is None:
            nested: np.ndarray = np.abs(f - f[level])
            return nested
        common = np.minimum(f * shared[:, level], f[level] * shared[level])
        curvature: np.ndarray = np.maximum(f + f[level] - 2 * common, 0.0)
        return curvature

    def between(self, parent: Allocation, child: Allocation) -> np.ndarray:
        """Curvature of every module between two allocations."""
        pairs = zip(parent, child, strict=True)
        return np.array([self.around(i, old)[new] if old != new else 0.0 for i, (old, new) in enumerate(pairs)])


def removed_together(space: SearchSpace, database: DatabaseReader) -> list[np.ndarray | None]:
    """`shared` of `Curvature`: shares of removed columns that two levels have in common."""
    shares: list[np.ndarray | None] = []
    for module in space.modules:
        if database.shapes[module.block, module.kind].experts:
            shares.append(_mixture_shared(module, database.shapes[module.block, module.kind]))
            continue
        variants = {database.variant(module.block, module.kind, level) for level in module.levels if level.width}
        if len(variants) < 2:
            shares.append(None)
            continue
        removed = np.ones((len(module.levels), database.shapes[module.block, module.kind].width))
        for row, level in zip(removed, module.levels, strict=True):
            row[database.columns(module.block, module.kind, level).numpy()] = 0
        counts = removed.sum(axis=1, keepdims=True)
        shares.append(np.divide(removed @ removed.T, counts, out=np.ones((len(removed),) * 2), where=counts > 0))
    return shares


def _mixture_shared(module: ModuleLevels, shape: ModuleShape) -> np.ndarray:
    """The same for a mixture: numbers of experts are nested, and so are widths."""
    experts, widths = (np.array([(level.experts, level.width) for level in module.levels])).T
    kept = experts * widths
    both = np.minimum.outer(experts, experts) * np.minimum.outer(widths, widths)
    gone = shape.experts * shape.width - (kept[:, None] + kept - both)
    counts = (shape.experts * shape.width - kept)[:, None]
    shares: np.ndarray = np.divide(gone, counts, out=np.ones(gone.shape), where=counts > 0)
    return shares
