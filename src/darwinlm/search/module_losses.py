"""Single-module losses: the loss of the whole model if a single module is at a level.

A database with output gradients estimates them to second order (`database/factors.py`), without running the model.
"""

from __future__ import annotations

from darwinlm.database.store import DatabaseReader
from darwinlm.units.space import PerLevel, SearchSpace


def local_errors(space: SearchSpace, database: DatabaseReader) -> PerLevel:
    """Relative local error of every level of every module."""
    return [[database.error(module.block, module.kind, level) for level in module.levels] for module in space.modules]


def estimated_losses(space: SearchSpace, database: DatabaseReader) -> PerLevel | None:
    """Estimated loss of every level of every module, in nats per token; None where the database has none."""
    losses: list[list[float]] = []
    for module in space.modules:
        row = [database.loss(module.block, module.kind, level) for level in module.levels]
        if any(loss is None for loss in row):
            return None
        losses.append([loss for loss in row if loss is not None])
    return losses
