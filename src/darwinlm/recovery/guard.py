"""A check of the loss before every update."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from darwinlm.errors import NumericsError

_SMOOTHING = 0.9
_SETTLED = 10
DIVERGENCE = 2.0
"""Ratio of the smoothed loss to its lowest value at which training stops."""


class LossGuard(BaseModel):
    """Stops training before an update if the loss is not finite or the smoothed loss diverges.

    `smoothed` is the exponentially weighted mean of the last losses, `lowest` its lowest value so far.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    smoothed: float = 0.0
    lowest: float = math.inf
    steps: int = 0

    def see(self, loss: float, step: int) -> None:
        """Record the loss of a step before its update. Raises NumericsError."""
        if not math.isfinite(loss):
            raise NumericsError(self._message(step, f"the loss is {loss}"))
        self.steps += 1
        weight = min(_SMOOTHING, 1 - 1 / self.steps)
        self.smoothed = weight * self.smoothed + (1 - weight) * loss
        if self.steps >= _SETTLED:
            self.lowest = min(self.lowest, self.smoothed)
        if self.smoothed > DIVERGENCE * self.lowest:
            raise NumericsError(
                self._message(step, f"the loss has risen from {self.lowest:.4g} to {self.smoothed:.4g}")
            )

    @property
    def good(self) -> bool:
        """Whether a state at this loss is worth keeping."""
        return self.smoothed <= (1 + DIVERGENCE) / 2 * self.lowest

    @staticmethod
    def _message(step: int, what: str) -> str:
        return (
            f"recovery stopped before the update of step {step + 1}: {what}. The last good checkpoint is kept; lower "
            "recovery.learning_rate, and delete the stage's folder to start again"
        )
