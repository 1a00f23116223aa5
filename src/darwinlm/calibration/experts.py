"""What reaches the output projections of a mixture's experts.

Letters: n tokens, k experts chosen for each, m residual width, d channels of an expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from darwinlm.calibration.moments import ExpertMoments
from darwinlm.families.family import Experts


def expert_module(owner: nn.Module | None, experts: Experts | None) -> Any | None:
    """What holds the experts of an MLP; None where the MLP is gone or no mixture."""
    return None if owner is None or experts is None else getattr(owner, experts.name, None)


def watch_experts(module: Any, experts: Experts, moments: ExpertMoments) -> RemovableHandle:
    """Add to the moments whatever the experts are called with, until the handle is removed.

    Args:
        module: holds the experts; called with hidden states [n, m], chosen experts [n, k] and their weights [n, k].
        experts: names of its tensors.
        moments: of its experts.
    """

    def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden, chosen, weights = _three(arguments, named)
        moments.count += hidden.shape[0]
        for expert in torch.unique(chosen).tolist():
            token, place = torch.where(chosen == expert)
            moments.add(expert, _channels(module, experts, expert, hidden[token]), weights[token, place])

    return module.register_forward_pre_hook(note, with_kwargs=True)  # type: ignore[no-any-return]


def _three(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    values = [*arguments, *(named[name] for name in ("hidden_states", "top_k_index", "top_k_weights") if name in named)]
    hidden, chosen, weights = values
    return hidden, chosen, weights


def _channels(module: Any, experts: Experts, expert: int, hidden: Tensor) -> Tensor:
    """Input of an expert's output projection, [n, m] -> [n, d]: act(gate) * up."""
    gate, up = (part for name in experts.segments for part in _halves(module, experts, name, expert, hidden))
    return module.act_fn(gate) * up  # type: ignore[no-any-return]


def _halves(module: Any, experts: Experts, name: str, expert: int, hidden: Tensor) -> tuple[Tensor, ...]:
    return linear(hidden, getattr(module, name)[expert]).chunk(len(experts.segments[name]), dim=-1)
