"""Mixtures of experts: what files say about the router and about shared experts."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def first_row(tensor: Tensor, _: Any) -> Tensor:
    """The only row of a correction (ERNIE 4.5), or of the gate of a shared expert."""
    return tensor[0]


def leading_dense_blocks(_: Any, layout: Any) -> int:
    """Number of blocks before the first mixture."""
    return [bool(each.mlp.experts) for each in layout.targets].index(True)


def shared_count(_: Any, layout: Any) -> int:
    """Width of the shared experts as a multiple of that of the others."""
    return int(layout.shared)


def shared_width(_: Any, layout: Any) -> int:
    """Width of the shared experts."""
    return int(layout.shared * layout.targets[-1].mlp.width)


def weight_scale(reshaper: Any, _: Any) -> float:
    """Factor on the weights of experts."""
    return float(reshaper.family.mlp.experts.weight_scale(reshaper.checkpoint.config))


def sums_to_one(reshaper: Any, _: Any) -> bool:
    """Whether weights of the chosen experts sum to one."""
    return bool(reshaper.family.mlp.experts.sums_to_one(reshaper.checkpoint.config))


def scores(reshaper: Any, _: Any) -> Any:
    """Function of the router's logits."""
    from gguf import ExpertGatingFuncType

    return ExpertGatingFuncType[reshaper.family.mlp.experts.scores.upper()]


def groups(reshaper: Any, _: Any) -> int | None:
    """Groups of experts among which the router chooses first; None with a single one."""
    config = reshaper.checkpoint.config
    return config.n_group if (config.n_group or 1) > 1 else None


def chosen_groups(reshaper: Any, layout: Any) -> int | None:
    """Groups that the router chooses; None with a single one."""
    return reshaper.checkpoint.config.topk_group if groups(reshaper, layout) else None
