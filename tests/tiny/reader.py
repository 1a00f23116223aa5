"""A reader of modules that needs no database."""

import torch
from torch import Tensor

from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.units.levels import Level
from darwinlm.model.units.modules import ModuleReader


class FirstUnits(ModuleReader):
    """Keeps the first units of every module, with the dense weights."""

    def best_columns(self, block: int, kind: ModuleKind, level: Level) -> Tensor:
        full, sizes = self.shapes[block, kind].sizes, level.sizes
        if kind == "mlp":
            columns = torch.arange(sizes.width)
            return columns.expand(sizes.experts, -1) if full.experts else columns
        if sizes.even:
            heads = torch.arange(full.heads).view(full.groups, full.heads_per_group)
            places = heads[: sizes.groups, : sizes.heads_per_group].reshape(-1)
        else:
            places = torch.arange(sizes.heads)
        return (places[:, None] * full.head_dim + torch.arange(full.head_dim)).reshape(-1)

    def best_experts(self, block: int, level: Level) -> Tensor:
        return torch.arange(level.sizes.experts)
