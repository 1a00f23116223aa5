"""Metrics of removal: how the order in which the units of a module are removed is found.

To add one, register a `RemovalMetric`, here or in a script, and name it in `database.metric`. Weights at every level
are then the least-squares solution on the units that the order keeps.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from darwinlm.runtime.registry import Extension, Extensions

if TYPE_CHECKING:
    from torch import Tensor


class RemovalMetric(Extension):
    """A metric that orders the units of a module; its fields are its settings.

    Attributes:
        gradients: Whether it needs gradients of the loss.
    """

    gradients: ClassVar[bool] = False

    @abstractmethod
    def order(self, moment: Tensor, W: Tensor, units: Tensor, S: Tensor | None, name: str) -> Tensor:
        """Units in the order in which to keep them, the last one removed first.

        Args:
            moment: [d, d] floating, second moment of the inputs.
            W: [r, d] floating, output projection.
            units: [n, u] int64, columns of every unit.
            S: [r, r] floating, second moment of the output gradients; None without `gradients`.
            name: Name of the module, for messages.

        Returns:
            [n] int64.
        """


REMOVAL_METRICS = Extensions(RemovalMetric, "removal metric", "database.metric")
"""Metrics by their names for `database.metric`."""


@REMOVAL_METRICS.register("output")
class OutputError(RemovalMetric):
    """The unit whose removal adds least to the output error is removed first, as in the paper."""

    def order(self, moment: Tensor, W: Tensor, units: Tensor, S: Tensor | None, name: str) -> Tensor:
        """See `RemovalMetric.order`. Raises NumericsError."""
        from darwinlm.steps.database.order import least_error

        return least_error(moment, W, units, S, name)


@REMOVAL_METRICS.register("loss")
class LossError(OutputError):
    """The same with output errors weighted by their effect on the loss."""

    gradients = True
