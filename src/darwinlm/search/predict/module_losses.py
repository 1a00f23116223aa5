"""Single-module losses: the loss of the whole model if a single module is at a level.

A database with output gradients estimates them to second order (`database/factors.py`), without running the model.
"""

from __future__ import annotations

from darwinlm.database.store import DatabaseReader
from darwinlm.figures import Sensitivity
from darwinlm.search.problem.space import PerLevel, SearchSpace


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


def sensitivities(space: SearchSpace, database: DatabaseReader) -> list[Sensitivity]:
    """Sensitivity of every module that may be cut; empty if the database has no estimates."""
    result = []
    for module, losses in zip(space.modules, estimated_losses(space, database) or (), strict=False):
        if len(module.levels) > 1:
            half = module.levels[-1].params / 2
            between = range(1, len(losses) - 1)
            nearest = min(between, key=lambda at: abs(module.levels[at].params - half), default=None)
            result.append(
                Sensitivity(module.block, module.kind, losses[0], None if nearest is None else losses[nearest])
            )
    return result
