"""Inputs of the output projections of a mixture's experts.

Letters: n tokens, k experts chosen for each, m residual width, d channels of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid
from torch.utils.hooks import RemovableHandle

from darwinlm.calibration.expert_order import ExpertOrder, Total, expert_order
from darwinlm.calibration.moments import ExpertMoments
from darwinlm.families.family import Experts


def expert_module(owner: nn.Module | None, experts: Experts | None) -> Any | None:
    """The module that holds the experts of an MLP; None if the MLP is absent or not a mixture."""
    return None if owner is None or experts is None else getattr(owner, experts.name, None)


@dataclass(frozen=True)
class Routing:
    """Input of a mixture [n, m], the chosen experts of each token [n, k], and the factors on their outputs [n, k]."""

    hidden: Tensor
    chosen: Tensor
    weights: Tensor


def watch_routing(module: Any, note: Callable[[Routing], None]) -> RemovableHandle:
    """Report the arguments of every call of the experts until the handle is removed, before the experts run.

    The module is called with hidden states [n, m], chosen experts [n, k] and their weights [n, k].
    """

    def called(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        others = (named[name] for name in ("hidden_states", "top_k_index", "top_k_weights") if name in named)
        note(Routing(*arguments, *others))

    return module.register_forward_pre_hook(called, with_kwargs=True)  # type: ignore[no-any-return]


def watch_experts(module: Any, experts: Experts, moments: ExpertMoments) -> RemovableHandle:
    """Add the inputs of all calls of the experts, as in `watch_routing`, to the moments until the handle is removed."""

    def note(routing: Routing) -> None:
        moments.count += len(routing.hidden)
        for expert in torch.unique(routing.chosen).tolist():
            moments.add(expert, expert_inputs(module, experts, routing, expert)[1])

    return watch_routing(module, note)


def router_logits(mlp: nn.Module, experts: Experts, hidden: Tensor) -> Tensor:
    """Logits of the router, [n, m] -> [n, e] float32."""
    result = getattr(mlp, experts.router)(hidden)
    logits: Tensor = result[0] if isinstance(result, tuple) else result
    return logits.float()


def expert_output(module: Any, hidden: Tensor, expert: int) -> Tensor:
    """Unweighted output of one expert on all given tokens, [n, m] -> [n, m]."""
    chosen = torch.full((len(hidden), 1), expert, device=hidden.device)
    # Calling the module itself would trigger its hooks.
    output: Tensor = module.forward(hidden, chosen, torch.ones_like(chosen, dtype=hidden.dtype))
    return output


@torch.no_grad()
def order_experts(
    mlp: nn.Module, experts: Experts, config: Any, hidden: Tensor, S: Tensor | None, total: Total
) -> ExpertOrder:
    """Removal order of the experts of a mixture, whose module includes the router.

    `hidden` is [n, m], the input of the mixture on some tokens. S is [m, m], the second moment of the gradients at its
    output; None for the unweighted order. `total` sums over processes.
    """
    module, logits, scale = (
        getattr(mlp, experts.name),
        router_logits(mlp, experts, hidden),
        experts.weight_scale(config),
    )
    correction = 0 if experts.correction is None else getattr(getattr(mlp, experts.router), experts.correction)
    sigmoid = experts.scores == "sigmoid"
    return expert_order(
        logsigmoid(logits) if sigmoid else logits,
        lambda expert, tokens: scale * expert_output(module, hidden[tokens], expert),
        int(getattr(config, experts.chosen)),
        S,
        normalised=experts.sums_to_one(config),
        choice=logits.sigmoid() + correction if sigmoid else logits,
        beside=None if experts.shared is None else getattr(mlp, experts.shared)(hidden),
        total=total,
    )


def expert_inputs(module: Any, experts: Experts, routing: Routing, expert: int) -> tuple[Tensor, Tensor]:
    """Tokens [n] of an expert, and the weighted inputs of its output projection, [n, d] float32.

    With the router's weights, the projections of all experts add up to the mixture's output.
    """
    token, place = torch.where(routing.chosen == expert)
    hidden = routing.hidden[token]
    (name,) = experts.segments
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    gate_up = linear(hidden, weight.T if experts.transposed else weight, None if bias is None else bias[expert])
    return token, module._apply_gate(gate_up).float() * routing.weights[token, place].float()[:, None]


def output_sizes(module: Any, experts: Experts) -> tuple[int, int, int]:
    """Number of experts, residual width and channels of each expert."""
    count, rows, columns = getattr(module, experts.output).shape
    return (count, columns, rows) if experts.transposed else (count, rows, columns)
