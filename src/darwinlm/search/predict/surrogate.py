"""Guess what a switch of levels would do to the loss, from all evaluations so far.

Without slopes, the change of the loss between a parent and its child is modelled as Σᵢ wᵢ (fᵢ(child) - fᵢ(parent)),
where fᵢ is a curve of module i over its levels (its single-module loss, or its local error). With slopes s around the
parent (`slopes.py`) it is a second-order model,

    Σᵢ b (sᵢ(child) - sᵢ(parent)) + wᵢ bendᵢ(child, parent),

whose curvatures (`curvature.py`) are each module's own. Interactions between modules are left to weights. These start
at a common value and are corrected by ridge regression on the observed changes; so a module that matters more inside a
pruned model than it did inside the dense one is found out. The model only proposes: selection itself always uses
measured losses.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import nnls

from darwinlm.search.predict.curvature import Curvature
from darwinlm.search.problem.space import Allocation, Curves

Observation = tuple[Allocation, Allocation, float, float]
"""Parent, child, measured change of the loss, and the change that the slopes around the parent gave, or 0."""


INTERACTION = 1.2
"""Factor by which the loss curves more when modules move together than each alone; used before any observation."""


class Surrogate:
    """Predicted change of the loss between two allocations.

    Args:
        curves: a number for each level of each module, falling with the size of the level.
        observations: of earlier evaluations.
        curvature: of the modules, where there are slopes.
        slopes: a number for each level of each module, of the parent whose children are asked for.
        worth: what the curvature weigh before anything was seen.
        ridge: how many observations the starting weights are worth.
    """

    def __init__(
        self,
        curves: Curves,
        observations: Iterable[Observation] = (),
        *,
        curvature: Curvature | None = None,
        slopes: Curves | None = None,
        worth: float = 1.0,
        ridge: float = 4.0,
    ) -> None:
        self.curves = [np.asarray(curve, dtype=np.float64) for curve in curves]
        self.curvature = curvature
        self.slopes = slopes
        self.weights = np.full(len(self.curves), worth)
        self.worth = worth
        self.slope_weight = 1.0
        known = list(observations)
        if known:
            X = np.array([self._features(parent, child) for parent, child, _, _ in known])
            self._fit(X, np.array([change for _, _, change, _ in known]), np.array([by for *_, by in known]), ridge)

    def _fit(self, X: np.ndarray, y: np.ndarray, by_slopes: np.ndarray, ridge: float) -> None:
        # The further away a child is, the less a model of second order can say of it.
        size = X.sum(axis=1) + np.abs(by_slopes) if self.slopes is not None else np.ones(len(y))
        trust = 1 / (size + np.median(size) + 1e-30)
        X, y, by_slopes = X * trust[:, None], y * trust, by_slopes * trust
        # The common weights first: in a pruned model all single-module losses are off by one factor.
        common = X.sum(axis=1)
        if self.slopes is None:
            weight = float(np.clip((common @ y) / max(common @ common, 1e-30), 0.0, 10.0))
            residual = y - weight * common
        else:
            both = np.stack([common, by_slopes], axis=1)
            held = np.sqrt(ridge * np.maximum((both**2).mean(axis=0), 1e-30))
            A, target = np.concatenate([both, np.diag(held)]), np.concatenate([y, held * (self.worth, 1.0)])
            weight, self.slope_weight = map(float, nnls(A, target)[0])
            residual = y - both @ np.array([weight, self.slope_weight])
        strength = ridge * max(float((X**2).sum(axis=1).mean()) / X.shape[1], 1e-30)
        correction = np.linalg.solve(X.T @ X + strength * np.eye(X.shape[1]), X.T @ residual)
        # A smaller module can't help, nor a curvature lower the loss: weights below zero are noise.
        self.weights = np.maximum(weight + correction, 0.0)

    def _features(self, parent: Allocation, child: Allocation) -> np.ndarray:
        if self.curvature is not None:
            return self.curvature.between(parent, child)
        return np.array([curve[new] - curve[old] for curve, old, new in zip(self.curves, parent, child, strict=True)])

    def change(self, parent: Allocation, child: Allocation) -> float:
        """Predicted loss of the child minus that of the parent."""
        found = float(self._features(parent, child) @ self.weights)
        return found if self.slopes is None else found + self.slope_weight * sloped(self.slopes, parent, child)

    def losses(self, parent: Allocation, caution: float) -> list[np.ndarray]:
        """Predicted loss of every level of every module around the parent, with curvature so many times as strong."""
        assert self.curvature is not None
        assert self.slopes is not None
        return [
            self.slope_weight * np.asarray(slope) + caution * weight * self.curvature.around(index, level)
            for index, (slope, weight, level) in enumerate(zip(self.slopes, self.weights, parent, strict=True))
        ]


def sloped(slopes: Curves, parent: Allocation, child: Allocation) -> float:
    """Change of the loss by the slopes around the parent alone."""
    return sum(float(row[new] - row[old]) for row, old, new in zip(slopes, parent, child, strict=True))
