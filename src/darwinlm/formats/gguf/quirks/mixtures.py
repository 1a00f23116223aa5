"""Mixtures of experts: what files say about the router and about shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.formats.gguf.quirks import FromFile
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.families.parts import Experts
from darwinlm.model.surgery.reshape import Reshaper

if TYPE_CHECKING:
    from gguf import ExpertGatingFuncType


def _experts(reshaper: Reshaper) -> Experts:
    experts = reshaper.family.mlp.experts
    assert experts is not None
    return experts


def gate_and_up(tensor: Tensor, _: object) -> dict[str, Tensor]:
    """Both input projections of the shared expert."""
    gate, up = torch.chunk(tensor, 2)
    return {"mlp.shared_expert.gate_proj.weight": gate, "mlp.shared_expert.up_proj.weight": up}


def undo_gate_and_up(parts: Mapping[str, Tensor], _: object) -> Tensor:
    """Both projections in one tensor."""
    return torch.cat([parts[f"mlp.shared_expert.{name}_proj.weight"] for name in ("gate", "up")])


def first_row(tensor: Tensor, _: object) -> Tensor:
    """The only row of a correction (ERNIE 4.5), or of the gate of a shared expert."""
    return tensor[0]


def undo_first_row(tensor: Tensor, origin: FromFile) -> Tensor:
    """The tensor with its only row; some writers keep it."""
    return tensor.reshape(origin.shape)


def leading_dense_blocks(_: Reshaper, layout: Layout) -> int:
    """Number of blocks before the first mixture."""
    return [bool(target.mlp.experts) for target in layout.targets].index(True)


def shared_count(_: Reshaper, layout: Layout) -> int:
    """Width of the shared experts as a multiple of that of the others."""
    return int(layout.shared)


def shared_width(_: Reshaper, layout: Layout) -> int:
    """Width of the shared experts."""
    return int(layout.shared * layout.targets[-1].mlp.width)


def weight_scale(reshaper: Reshaper, _: Layout) -> float:
    """Factor on the weights of experts."""
    return float(_experts(reshaper).weight_scale(reshaper.checkpoint.config))


def sums_to_one(reshaper: Reshaper, _: Layout) -> bool:
    """Whether weights of the chosen experts sum to one."""
    return bool(_experts(reshaper).sums_to_one(reshaper.checkpoint.config))


def scores(reshaper: Reshaper, _: Layout) -> ExpertGatingFuncType:
    """Function of the router's logits."""
    from gguf import ExpertGatingFuncType

    return ExpertGatingFuncType[_experts(reshaper).scores.upper()]


def groups(reshaper: Reshaper, _: Layout) -> int | None:
    """Groups of experts among which the router chooses first; None with a single one."""
    config = reshaper.checkpoint.config
    return config.n_group if (config.n_group or 1) > 1 else None


def chosen_groups(reshaper: Reshaper, layout: Layout) -> int | None:
    """Groups that the router chooses; None with a single one."""
    return reshaper.checkpoint.config.topk_group if groups(reshaper, layout) else None
