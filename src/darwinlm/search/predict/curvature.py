"""How much the loss curvature between two levels of a module: the second-order part of what a switch of levels does.

Between nested levels l and p of a module the output changes by a vector whose mean square is the difference of their
squared errors, because the best narrower output is a projection of the wider one. Where the removed columns A and B
aren't nested (two variants of an attention), what both removals have in common is taken out of the sum of the errors:

    d(l, p) = e_l + e_p - 2 s,    s = min(e_l |A ∩ B| / |A|, e_p |A ∩ B| / |B|),

which is |e_l - e_p| for nested ones and e_l + e_p where nothing is shared. In the dense model the loss has no slope, so
that what a module alone loses is all curvature, and tells what a unit of error costs in it:

    curvature(l, p) = d(l, p) (f_l + f_p) / (e_l + e_p).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from darwinlm.database.levels import ModuleLevels
from darwinlm.database.store import DatabaseReader
from darwinlm.families.shapes import ModuleShape
from darwinlm.search.problem.space import Allocation, Curves, SearchSpace


class Curvature:
    """Curvature between levels of every module, in the unit of the curves.

    Args:
        curves: f, loss of every level of every module alone.
        errors: e, relative squared output error of the same levels; 0 is dense.
        shared: for modules whose levels aren't nested, the share of the columns that level l removes which level p
            removes too, [levels l, levels p]; None for the others.
    """

    def __init__(self, curves: Curves, errors: Curves, shared: Sequence[np.ndarray | None]) -> None:
        self.curves = [np.asarray(row, dtype=np.float64) for row in curves]
        self.errors = [np.asarray(row, dtype=np.float64) for row in errors]
        self.shared = shared

    def around(self, index: int, level: int) -> np.ndarray:
        """Bend between every level of a module and this one."""
        f, e, shared = self.curves[index], self.errors[index], self.shared[index]
        if shared is None:
            distances = np.abs(e - e[level])
        else:
            distances = e + e[level] - 2 * np.minimum(e * shared[:, level], e[level] * shared[level])
        total = e + e[level]
        costs = np.divide(f + f[level], total, out=np.zeros_like(total), where=total > 0)
        found: np.ndarray = np.maximum(distances, 0.0) * costs
        return found

    def between(self, parent: Allocation, child: Allocation) -> np.ndarray:
        """Bend of every module between two allocations."""
        pairs = zip(parent, child, strict=True)
        return np.array([self.around(i, old)[new] if old != new else 0.0 for i, (old, new) in enumerate(pairs)])


def removed_together(space: SearchSpace, database: DatabaseReader) -> list[np.ndarray | None]:
    """`shared` of `Curvature`: columns of the output projections that two levels both remove."""
    found: list[np.ndarray | None] = []
    for module in space.modules:
        if database.shape(module.block, module.kind).experts:
            found.append(_mixture_shared(module, database.shape(module.block, module.kind)))
            continue
        variants = {database.variant(module.block, module.kind, level) for level in module.levels if level.width}
        if len(variants) < 2:
            found.append(None)
            continue
        removed = np.ones((len(module.levels), database.shape(module.block, module.kind).width))
        for row, level in zip(removed, module.levels, strict=True):
            row[database.columns(module.block, module.kind, level).numpy()] = 0
        counts = removed.sum(axis=1, keepdims=True)
        found.append(np.divide(removed @ removed.T, counts, out=np.ones((len(removed),) * 2), where=counts > 0))
    return found


def _mixture_shared(module: ModuleLevels, shape: ModuleShape) -> np.ndarray:
    """The same for a mixture, whose experts and whose widths are nested each for itself."""
    experts, widths = (np.array([(level.experts, level.width) for level in module.levels])).T
    kept = experts * widths
    both = np.minimum.outer(experts, experts) * np.minimum.outer(widths, widths)
    gone = shape.experts * shape.width - (kept[:, None] + kept - both)
    counts = (shape.experts * shape.width - kept)[:, None]
    return np.divide(gone, counts, out=np.ones(gone.shape), where=counts > 0)
