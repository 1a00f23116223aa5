"""Readers that keep units by a score, with the dense weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.layer_sizes import Place
from darwinlm.model.units.levels import Level
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import FamilyError


@dataclass(frozen=True)
class UnitScores:
    """Importance of the units of one module.

    Attributes:
        units: [width], scores of an MLP's channels, or [groups, heads], scores of an attention's query heads.
        groups: [groups], additional scores of KV groups; None adds nothing.
        scale: [width], factors on the kept columns; None leaves them unchanged.
    """

    units: Tensor
    groups: Tensor | None = None
    scale: Tensor | None = None


class RankedReader(ModuleReader):
    """Keeps the units of every module with the highest scores; their weights don't change, apart from the scale.

    Raises FamilyError if the model is a mixture of experts, whose units these methods don't score.
    """

    def __init__(self, checkpoint: Checkpoint, units: UnitsSettings, scores: Mapping[Place, UnitScores]) -> None:
        super().__init__(checkpoint, units)
        self.scores = scores
        mixtures = [shape.name for shape in self.shapes.values() if shape.sizes.experts]
        if mixtures:
            raise FamilyError(
                f"{mixtures[0]} is a mixture of experts, which this method does not support: leave it out, or use ziplm"
            )

    def best_columns(self, block: int, kind: ModuleKind, level: Level) -> Tensor:
        """Columns of the best units of a module, [k] ascending."""
        return best_columns(self.shapes[block, kind], level, self.scores[block, kind])

    def weight(self, block: int, kind: ModuleKind, level: Level) -> Tensor | None:
        """Dense weights on the kept columns, times their scale."""
        scores = self.scores.get((block, kind))
        if scores is None or scores.scale is None:
            return super().weight(block, kind, level)
        columns = self.columns(block, kind, level)
        return self.dense_weight(block, kind)[:, columns] * scores.scale[columns]


class ExpertReader(ModuleReader):
    """Keeps the experts of every mixture with the highest scores; their weights don't change.

    Scores are [e] of each mixture, by block.
    """

    def __init__(self, checkpoint: Checkpoint, units: UnitsSettings, scores: Mapping[int, Tensor]) -> None:
        super().__init__(checkpoint, units)
        self.scores = scores

    def best_experts(self, block: int, level: Level) -> Tensor:
        """The best experts of a mixture, [e] ascending."""
        return _best(self.scores[block], level.sizes.experts)


def best_columns(shape: ModuleShape, level: Level, scores: UnitScores) -> Tensor:
    """Columns of the output projection that a level keeps, [k] ascending.

    An attention keeps its best heads in the groups with the largest sum of these heads' scores and the group's score.
    An MLP keeps its best channels. On ties the first unit is preferred.
    """
    full, kept = shape.sizes, level.sizes
    if shape.kind == "mlp":
        return _best(scores.units, kept.width)
    if per_group := kept.heads_per_group:
        heads = torch.stack([_best(row, per_group) for row in scores.units])
        totals = scores.units.gather(1, heads).sum(1)
        chosen = _best(totals if scores.groups is None else totals + scores.groups, kept.groups)
        places = (chosen[:, None] * full.heads_per_group + heads[chosen]).reshape(-1)
    else:  # any query heads; all KV heads stay
        places = _best(scores.units.reshape(-1), kept.heads)
    return (places[:, None] * full.head_dim + torch.arange(full.head_dim)).reshape(-1)


def _best(values: Tensor, count: int) -> Tensor:
    return values.argsort(descending=True, stable=True)[:count].sort().values
