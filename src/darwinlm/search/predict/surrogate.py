"""Predict the change of the loss between allocations from slopes, curvature and all evaluations so far.

Between a parent and its child the change of the loss is modelled to second order,

    Σᵢ sᵢ(child) - sᵢ(parent) + wᵢ curvatureᵢ(child, parent),

with slopes s around the parent (`gradients.py`) and the curvature of each module (`curvature.py`). Interactions between
modules only enter through the weights wᵢ. These start at a common value and are corrected by ridge regression on the
observed changes. So modules that matter more in a pruned model than in the dense one get larger weights. Slopes are
derivatives and have no weight; a fitted one fell to between 0.1 and 0.5 and predicted worse (notebook, "What the search
predicts"). The model only proposes children; selection always uses measured losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.optimize import lsq_linear

from darwinlm.search.predict.curvature import Curvature
from darwinlm.search.problem.space import Allocation, PerLevel

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
