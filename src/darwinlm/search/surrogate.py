"""Guess which children are worth evaluating, from all evaluations so far.

The change of the loss between a parent and its child is modelled as Σᵢ wᵢ (fᵢ(child) - fᵢ(parent)), where fᵢ is a curve
of module i over its levels (its single-module loss, or its local error). The weights start at a common value and are
corrected by ridge regression on the observed changes; so a module that matters more inside a pruned model than it did
inside the dense one is found out. It only ranks proposals: selection itself always uses measured losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from darwinlm.search.space import Allocation

Observation = tuple[Allocation, Allocation, float]


class Surrogate:
    """Predicted change of the loss between two allocations.

    Args:
        curves: a number for each level of each module, falling with the size of the level.
        observations: (parent, child, change of the loss) of earlier evaluations.
        ridge: how many observations the starting weights are worth.
    """

    def __init__(
        self, curves: Sequence[Sequence[float]], observations: Iterable[Observation] = (), *, ridge: float = 4.0
    ) -> None:
        self.curves = [np.asarray(curve, dtype=np.float64) for curve in curves]
        rows = [(self._features(parent, child), change) for parent, child, change in observations]
        self.weights = np.ones(len(self.curves))
        if rows:
            X = np.array([features for features, _ in rows])
            y = np.array([change for _, change in rows])
            self._fit(X, y, ridge)

    def _fit(self, X: np.ndarray, y: np.ndarray, ridge: float) -> None:
        total = X.sum(axis=1)
        # The common weight first: in a pruned model all single-module losses are off by one factor.
        common = float(np.clip((total @ y) / max(total @ total, 1e-30), 0.0, 10.0))
        strength = ridge * max(float((X**2).sum(axis=1).mean()) / X.shape[1], 1e-30)
        residual = y - common * total
        correction = np.linalg.solve(X.T @ X + strength * np.eye(X.shape[1]), X.T @ residual)
        # A smaller module can't help: weights below zero are noise.
        self.weights = np.maximum(common + correction, 0.0)

    def _features(self, parent: Allocation, child: Allocation) -> np.ndarray:
        return np.array([curve[new] - curve[old] for curve, old, new in zip(self.curves, parent, child, strict=True)])

    def change(self, parent: Allocation, child: Allocation) -> float:
        """Predicted loss of the child minus that of the parent."""
        return float(self._features(parent, child) @ self.weights)
