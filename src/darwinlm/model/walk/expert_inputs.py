"""Inputs of the output projections of a mixture's experts.

Letters: n tokens, k experts chosen for each, m residual width, d channels of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from darwinlm.model.families.parts import Experts, Mlp


def mixture_module(block: nn.Module, part: Mlp, name: str | None) -> nn.Module | None:
    """A module of a block's mixture by its name there; None if the MLP is absent or not a mixture."""
    try:
        return None if name is None else block.get_submodule(f"{part.prefix}{name}")
    except AttributeError:
        return None


def expert_module(block: nn.Module, part: Mlp) -> nn.Module | None:
    """The module that holds the experts of a block; None if its MLP is absent or not a mixture."""
    return None if part.experts is None else mixture_module(block, part, part.experts.name)


@dataclass(frozen=True)
class Routing:
    """Input of a mixture [n, m], the chosen experts of each token [n, k], and the factors on their outputs [n, k]."""

    hidden: Tensor
    chosen: Tensor
    weights: Tensor


def watch_experts(module: nn.Module, note: Callable[[Routing, Tensor], None]) -> RemovableHandle:
    """Report the routing and the result [n, m] of every call of the experts until the handle is removed.

    The module is called with hidden states [n, m], chosen experts [n, k] and their weights [n, k].
    """

    def called(_: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        by_name = (named[name] for name in ("hidden_states", "top_k_index", "top_k_weights") if name in named)
        note(Routing(*positional, *by_name), output)

    return module.register_forward_hook(called, with_kwargs=True)


def expert_inputs(module: nn.Module, experts: Experts, routing: Routing, expert: int) -> tuple[Tensor, Tensor]:
    """Tokens [n] int64 of an expert, and the weighted inputs of its output projection, [n, d] float32.

    With the router's weights, the projections of all experts add up to the mixture's output.
    """
    token, rank = torch.where(routing.chosen == expert)
    (name,) = experts.segments
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    weight = weight.T if experts.transposed else weight
    gate: Callable[[Tensor], Tensor] = getattr(module, "_apply_gate")  # noqa: B009 - of the family's class
    channels = gate(linear(routing.hidden[token], weight, None if bias is None else bias[expert]))
    return token, channels.float() * routing.weights[token, rank].float()[:, None]


def output_sizes(module: nn.Module, experts: Experts) -> tuple[int, int, int]:
    """Number of experts, residual width and channels of each expert."""
    count, rows, columns = getattr(module, experts.output).shape
    return (count, columns, rows) if experts.transposed else (count, rows, columns)
