"""A reader of modules that needs no database."""

import torch
from torch import Tensor

from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.units.levels import Level
from darwinlm.model.units.modules import ModuleReader


class FirstUnits(ModuleReader):
    """Keeps the first units of every module, with the dense weights."""

    def best_columns(self, block: int, kind: ModuleKind, level: Level) -> Tensor:
        shape = self.shapes[block, kind]
        if kind == "mlp":
            columns = torch.arange(level.width)
            return columns.expand(level.experts, -1) if shape.experts else columns
        if level.heads:
            heads = torch.arange(shape.groups * shape.heads).view(shape.groups, shape.heads)
            places = heads[: level.groups, : level.heads].reshape(-1)
        else:
            places = torch.arange(level.query_heads)
        return (places[:, None] * shape.head_dim + torch.arange(shape.head_dim)).reshape(-1)

    def best_experts(self, block: int, level: Level) -> Tensor:
        return torch.arange(level.experts)
