"""Predict the change of the loss between allocations from slopes, curvature and all evaluations so far.

Between a parent and its child the change of the loss is modelled to second order,

    Σᵢ b (sᵢ(child) - sᵢ(parent)) + wᵢ curvatureᵢ(child, parent),

with slopes s around the parent (`gradients.py`) and the curvature of each module (`curvature.py`). Interactions between
modules only enter through the weights b and wᵢ. These start at common values and are corrected by ridge regression on
the observed changes. So modules that matter more in a pruned model than in the dense one get larger weights. The model
only proposes children; selection always uses measured losses.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import nnls

from darwinlm.search.predict.curvature import Curvature
from darwinlm.search.problem.space import Allocation, PerLevel

Observation = tuple[Allocation, Allocation, float, float]
"""Parent, child, measured change of the loss, and the change predicted by the slopes around the parent."""

INTERACTION = 1.2
"""Initial factor on the curvature, because it is larger when modules move together than when each moves alone."""

RIDGE = 4.0
"""Weight of the starting values, in numbers of observations."""


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
        self.slope_weight = 1.0
        known = list(observations)
        if known:
            X = np.array([curvature.between(parent, child) for parent, child, _, _ in known])
            self._fit(X, np.array([change for _, _, change, _ in known]), np.array([by for *_, by in known]))

    def _fit(self, X: np.ndarray, y: np.ndarray, by_slopes: np.ndarray) -> None:
        # A second-order model is less accurate for distant children, so they count less.
        size = X.sum(axis=1) + np.abs(by_slopes)
        trust = 1 / (size + np.median(size) + 1e-30)
        X, y, by_slopes = X * trust[:, None], y * trust, by_slopes * trust
        # Fit the common weights first: in a pruned model all single-module losses are wrong by one factor.
        both = np.stack([X.sum(axis=1), by_slopes], axis=1)
        held = np.sqrt(RIDGE * np.maximum((both**2).mean(axis=0), 1e-30))
        A, target = np.concatenate([both, np.diag(held)]), np.concatenate([y, held * (self.weights[0], 1.0)])
        weight, self.slope_weight = map(float, nnls(A, target)[0])
        residual = y - both @ np.array([weight, self.slope_weight])
        strength = RIDGE * max(float((X**2).sum(axis=1).mean()) / X.shape[1], 1e-30)
        correction = np.linalg.solve(X.T @ X + strength * np.eye(X.shape[1]), X.T @ residual)
        # Curvature can't lower the loss, so negative weights are noise.
        self.weights = np.maximum(weight + correction, 0.0)

    def change(self, parent: Allocation, child: Allocation) -> float:
        """Predicted loss of the child minus that of the parent."""
        curved = float(self.curvature.between(parent, child) @ self.weights)
        return curved + self.slope_weight * first_order(self.slopes, parent, child)

    def losses(self, parent: Allocation, strength: float) -> list[np.ndarray]:
        """Predicted loss of every level of every module around the parent, with the curvature times `strength`."""
        return [
            self.slope_weight * np.asarray(slope) + strength * weight * self.curvature.around(index, level)
            for index, (slope, weight, level) in enumerate(zip(self.slopes, self.weights, parent, strict=True))
        ]


def first_order(slopes: PerLevel, parent: Allocation, child: Allocation) -> float:
    """Change of the loss predicted by the slopes around the parent alone."""
    return sum(float(row[new] - row[old]) for row, old, new in zip(slopes, parent, child, strict=True))
