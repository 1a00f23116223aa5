"""Inputs of the output projections of a mixture's experts.

Letters: n tokens, k experts chosen for each, m residual width, d channels of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from darwinlm.model.families.parts import Experts, Mlp


def mixture_module(block: nn.Module, part: Mlp, name: str | None) -> Any | None:
    """A module of a block's mixture by its name there; None if the MLP is absent or not a mixture."""
    try:
        return None if name is None else block.get_submodule(f"{part.prefix}{name}")
    except AttributeError:
        return None


def expert_module(block: nn.Module, part: Mlp) -> Any | None:
    """The module that holds the experts of a block; None if its MLP is absent or not a mixture."""
    return None if part.experts is None else mixture_module(block, part, part.experts.name)


@dataclass(frozen=True)
class Routing:
    """Input of a mixture [n, m], the chosen experts of each token [n, k], and the factors on their outputs [n, k]."""

    hidden: Tensor
    chosen: Tensor
    weights: Tensor


def watch_experts(module: Any, note: Callable[[Routing, Tensor], None]) -> RemovableHandle:
    """Report the routing and the result [n, m] of every call of the experts until the handle is removed.

    The module is called with hidden states [n, m], chosen experts [n, k] and their weights [n, k].
    """

    def called(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        others = (named[name] for name in ("hidden_states", "top_k_index", "top_k_weights") if name in named)
        note(Routing(*arguments, *others), output)

    return module.register_forward_hook(called, with_kwargs=True)  # type: ignore[no-any-return]


def expert_inputs(module: Any, experts: Experts, routing: Routing, expert: int) -> tuple[Tensor, Tensor]:
    """Tokens [n] of an expert, and the weighted inputs of its output projection, [n, d] float32.

    With the router's weights, the projections of all experts add up to the mixture's output.
    """
    token, place = torch.where(routing.chosen == expert)
    (name,) = experts.segments
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    weight = weight.T if experts.transposed else weight
    channels = module._apply_gate(linear(routing.hidden[token], weight, None if bias is None else bias[expert]))
    return token, channels.float() * routing.weights[token, place].float()[:, None]


def output_sizes(module: Any, experts: Experts) -> tuple[int, int, int]:
    """Number of experts, residual width and channels of each expert."""
    count, rows, columns = getattr(module, experts.output).shape
    return (count, columns, rows) if experts.transposed else (count, rows, columns)
