"""Predict the change of the loss between allocations from slopes, curvature and all evaluations so far.

Between a parent and its child the change of the loss is modelled to second order,

    Σᵢ sᵢ(child) - sᵢ(parent) + wᵢ curvatureᵢ(child, parent),

with slopes s around the parent (`slopes.py`) and the curvature of each module (below). Interactions between
modules only enter through the weights wᵢ. These start at a common value and are corrected by ridge regression on the
observed changes. So modules that matter more in a pruned model than in the dense one get larger weights. Slopes are
derivatives and have no weight; a fitted one fell to between 0.1 and 0.5 and predicted worse (notebook, "What the search
predicts"). The model only proposes children; selection always uses measured losses.

The best output of a narrower level is a projection of the wider one. So between two nested levels l and p, the mean
squared change of the output is the difference of their squared errors. Under the second moment of the output gradients,
half of a squared error is the module's estimated loss f, in nats per token (`database/factors.py`), and

    curvature(l, p) = f_l + f_p - 2 s,    s = min(f_l |A ∩ B| / |A|, f_p |A ∩ B| / |B|).

A and B are the columns that the two levels remove, and s is the shared part of the errors. For nested levels the
curvature is |f_l - f_p|. If the levels remove disjoint columns, as two variants of an attention may, it is f_l + f_p.
The loss has no slope at the dense model, so the curvature between a level and the dense one is f itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.optimize import lsq_linear

from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.units.levels import ModuleLevels
from darwinlm.model.units.space import Allocation, PerLevel, SearchSpace
from darwinlm.steps.database.store import DatabaseReader


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
        if database.shapes[module.place].sizes.experts:
            shares.append(_mixture_shared(module, database.shapes[module.place].sizes))
            continue
        variants = {database.variant(module.block, module.kind, level) for level in module.levels if level.sizes.width}
        if len(variants) < 2:
            shares.append(None)
            continue
        removed = np.ones((len(module.levels), database.shapes[module.place].sizes.width))
        for row, level in zip(removed, module.levels, strict=True):
            row[database.columns(module.block, module.kind, level).numpy()] = 0
        counts = removed.sum(axis=1, keepdims=True)
        shares.append(np.divide(removed @ removed.T, counts, out=np.ones((len(removed),) * 2), where=counts > 0))
    return shares


def _mixture_shared(module: ModuleLevels, full: LayerSizes) -> np.ndarray:
    """The same for a mixture: numbers of experts are nested, and so are widths."""
    experts, widths = (np.array([(level.sizes.experts, level.sizes.width) for level in module.levels])).T
    kept = experts * widths
    both = np.minimum.outer(experts, experts) * np.minimum.outer(widths, widths)
    gone = full.experts * full.width - (kept[:, None] + kept - both)
    counts = (full.experts * full.width - kept)[:, None]
    shares: np.ndarray = np.divide(gone, counts, out=np.ones(gone.shape), where=counts > 0)
    return shares


Observation = tuple[Allocation, Allocation, float, float]
"""Parent, child, measured change of the loss, and the change predicted by the slopes around the parent."""

INTERACTION = 1.2
"""Initial factor on the curvature, because it is larger when modules move together than when each moves alone."""

RIDGE = 4.0
"""Weight of the starting values, in numbers of observations."""

LEAST = 0.25
"""Smallest weight of a module as a share of the common one, and of the common one as a share of its starting value.
Without curvature, a module would move as far as the budget allows in every generation."""


class Surrogate:
    """Predicted change of the loss between a parent and its children.

    Slopes are those of every level of every module around the parent; observations may be of any parents.
    `curvature_weight` is the starting value of every module's w.
    """

    def __init__(
        self,
        curvature: Curvature,
        slopes: PerLevel,
        observations: Iterable[Observation] = (),
        *,
        curvature_weight: float = 1.0,
    ) -> None:
        self.curvature = curvature
        self.slopes = slopes
        self.weights = np.full(len(curvature.losses), curvature_weight)
        known = list(observations)
        if known:
            X = np.array([curvature.between(parent, child) for parent, child, _, _ in known])
            self._fit(X, np.array([change for _, _, change, _ in known]), np.array([by for *_, by in known]))

    def _fit(self, X: np.ndarray, y: np.ndarray, by_slopes: np.ndarray) -> None:
        # A second-order model is less accurate for distant children, so they count less.
        size = X.sum(axis=1) + np.abs(by_slopes)
        trust = 1 / (size + np.median(size) + 1e-30)
        X, y, by_slopes = X * trust[:, None], y * trust, by_slopes * trust
        # Fit the common weight first: in a pruned model all single-module losses are wrong by one factor.
        left, total = y - by_slopes, X.sum(axis=1)
        held = RIDGE * max(float((total**2).mean()), 1e-30)
        common = (total @ left + held * self.weights[0]) / (total @ total + held)
        common = max(common, LEAST * self.weights[0])
        strength = RIDGE * max(float((X**2).sum(axis=1).mean()) / X.shape[1], 1e-30)
        A = np.concatenate([X, math.sqrt(strength) * np.eye(X.shape[1])])
        target = np.concatenate([left, np.full(X.shape[1], math.sqrt(strength) * common)])
        self.weights = lsq_linear(A, target, bounds=(LEAST * common, np.inf)).x

    def change(self, parent: Allocation, child: Allocation) -> float:
        """Predicted loss of the child minus that of the parent."""
        curved = float(self.curvature.between(parent, child) @ self.weights)
        return curved + first_order(self.slopes, parent, child)

    def losses(self, parent: Allocation, strength: float) -> list[np.ndarray]:
        """Predicted loss of every level of every module around the parent, with the curvature times `strength`."""
        return [
            np.asarray(slope) + strength * weight * self.curvature.around(index, level)
            for index, (slope, weight, level) in enumerate(zip(self.slopes, self.weights, parent, strict=True))
        ]


def first_order(slopes: PerLevel, parent: Allocation, child: Allocation) -> float:
    """Change of the loss predicted by the slopes around the parent alone."""
    return sum(float(row[new] - row[old]) for row, old, new in zip(slopes, parent, child, strict=True))
