"""What reaches the output projections of a mixture's experts.

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

from darwinlm.calibration.expert_order import ExpertOrder, Total, expert_order
from darwinlm.calibration.moments import ExpertMoments
from darwinlm.families.family import Experts


def expert_module(owner: nn.Module | None, experts: Experts | None) -> Any | None:
    """What holds the experts of an MLP; None where the MLP is gone or no mixture."""
    return None if owner is None or experts is None else getattr(owner, experts.name, None)


@dataclass(frozen=True)
class Routing:
    """What the experts of a mixture are asked.

    Attributes:
        hidden: [n, m] input of the mixture.
        chosen: [n, k] the experts of each token.
        weights: [n, k] what their outputs are multiplied by.
    """

    hidden: Tensor
    chosen: Tensor
    weights: Tensor


def watch_routing(module: Any, note: Callable[[Routing], None]) -> RemovableHandle:
    """Note whatever the experts are called with, until the handle is removed.

    Args:
        module: Module of the experts; called with hidden states [n, m], chosen experts [n, k] and their weights [n, k].
        note: Callback that runs before the experts do.
    """

    def called(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        others = (named[name] for name in ("hidden_states", "top_k_index", "top_k_weights") if name in named)
        note(Routing(*arguments, *others))

    return module.register_forward_pre_hook(called, with_kwargs=True)  # type: ignore[no-any-return]


def watch_experts(module: Any, experts: Experts, moments: ExpertMoments) -> RemovableHandle:
    """Add to the moments whatever the experts are called with, until the handle is removed.

    Args:
        module: Module of the experts, as in `watch_routing`.
        experts: Names of its tensors.
        moments: Moments of its experts.
    """

    def note(routing: Routing) -> None:
        moments.count += len(routing.hidden)
        for expert in torch.unique(routing.chosen).tolist():
            moments.add(expert, expert_inputs(module, experts, routing, expert)[1])

    return watch_routing(module, note)


def router_logits(mlp: nn.Module, experts: Experts, hidden: Tensor) -> Tensor:
    """What the router says of all experts, [n, m] to [n, e] float32."""
    found = getattr(mlp, experts.router)(hidden)
    logits: Tensor = found[0] if isinstance(found, tuple) else found
    return logits.float()


def expert_output(module: Any, hidden: Tensor, expert: int) -> Tensor:
    """Output of one expert on all of some tokens, not weighted, [n, m] to [n, m]."""
    chosen = torch.full((len(hidden), 1), expert, device=hidden.device)
    # Not by calling it, which would be noted where the module is watched.
    output: Tensor = module.forward(hidden, chosen, torch.ones_like(chosen, dtype=hidden.dtype))
    return output


@torch.no_grad()
def order_experts(
    mlp: nn.Module, experts: Experts, config: Any, hidden: Tensor, S: Tensor | None, total: Total
) -> ExpertOrder:
    """In which order the experts of a mixture are removed.

    Args:
        mlp: The mixture, its router included.
        experts: Names in it.
        config: Configuration of the model.
        hidden: [n, m] input of the mixture on some tokens.
        S: [m, m] second moment of the gradients at its output, where the order is weighted.
        total: Sum over processes.
    """
    module = getattr(mlp, experts.name)
    return expert_order(
        router_logits(mlp, experts, hidden),
        lambda expert, tokens: expert_output(module, hidden[tokens], expert),
        int(getattr(config, experts.chosen)),
        S,
        normalised=experts.sums_to_one(config),
        total=total,
    )


def expert_inputs(module: Any, experts: Experts, routing: Routing, expert: int) -> tuple[Tensor, Tensor]:
    """The tokens [n] that ask an expert, and what goes into its output projection for them, weighted, [n, d] float32.

    Weighted by the router, the projections of all experts add up to the mixture's output.
    """
    token, place = torch.where(routing.chosen == expert)
    hidden = routing.hidden[token]
    gate, up = (part for name in experts.segments for part in _halves(module, experts, name, expert, hidden))
    return token, (module.act_fn(gate) * up).float() * routing.weights[token, place].float()[:, None]


def _halves(module: Any, experts: Experts, name: str, expert: int, hidden: Tensor) -> tuple[Tensor, ...]:
    return linear(hidden, getattr(module, name)[expert]).chunk(len(experts.segments[name]), dim=-1)
