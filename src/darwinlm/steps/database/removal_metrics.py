"""Metrics of removal: the order in which the units of a module are removed.

To add one, write an `Order` and name it in `METRICS`. Weights at every level are then the least-squares solution on the
units that the order keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.limits import suggestion
from darwinlm.steps.database.order import removal_order

Order = Callable[[Tensor, Tensor, Tensor, Tensor | None, str], Tensor]
"""Units in the order in which to keep them, [n] int64, the last one removed first.

Called with the second moment [d, d] of the inputs, the output projection [r, d], the columns of every unit [n, u], the
second moment [r, r] of the output gradients (None without gradients), and the name of the module for messages.
"""


def least_error(moment: Tensor, W: Tensor, units: Tensor, S: Tensor | None, name: str) -> Tensor:
    """The unit whose removal adds least to the output error, weighted by S if given, is removed first."""
    return removal_order(moment, W, units, gradients=S, name=name).units


@dataclass(frozen=True)
class Metric:
    """An order, and whether it needs gradients of the loss."""

    order: Order
    gradients: bool = False


METRICS = {"output": Metric(least_error), "loss": Metric(least_error, gradients=True)}
"""Metrics by their names for `database.metric`."""


def find_metric(name: str) -> Metric:
    """A metric by its name. Raises RecipeError, with a similar name."""
    if name not in METRICS:
        hint = suggestion(name, METRICS, f"known are {', '.join(METRICS)}")
        raise RecipeError(f"database.metric: there is no metric '{name}': {hint}")
    return METRICS[name]
