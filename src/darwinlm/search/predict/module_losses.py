"""Single-module losses: the loss of the whole model if a single module is at a level.

A database with output gradients estimates them to second order (`database/factors.py`), without running the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from darwinlm.database.store import DatabaseReader
from darwinlm.families.family import ModuleKind
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


@dataclass(frozen=True)
class Sensitivity:
    """Estimated loss of the model, in nats per token, with one module removed, or cut to half of its parameters.

    Attributes:
        block: of the module.
        kind: of the module.
        removed: at level 0.
        halved: at the level nearest to half; None where there is none between removed and dense.
    """

    block: int
    kind: ModuleKind
    removed: float
    halved: float | None


def sensitivities(space: SearchSpace, database: DatabaseReader) -> list[Sensitivity]:
    """Of every module that may be cut; none where the database has no estimates."""
    found = []
    for module, losses in zip(space.modules, estimated_losses(space, database) or (), strict=False):
        if len(module.levels) > 1:
            half = module.levels[-1].params / 2
            between = range(1, len(losses) - 1)
            nearest = min(between, key=lambda at: abs(module.levels[at].params - half), default=None)
            found.append(
                Sensitivity(module.block, module.kind, losses[0], None if nearest is None else losses[nearest])
            )
    return found
