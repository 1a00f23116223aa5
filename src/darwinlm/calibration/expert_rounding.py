"""What rounding the tensors of a mixture's experts costs, as `calibration/rounding.py` says for other matrices.

A tensor of the experts has one type for all of them. Its loss is the sum over experts of the tokens that reach them,
with the router's factor in the gradient. Errors of different experts at a token count as independent.

Letters: n tokens of an expert, m residual width, f channels of an expert, e experts, r rows, c columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.families.expert_tensors import by_rows
from darwinlm.families.parts import Mlp
from darwinlm.streaming.experts import Routing, expert_projection, projected_channels, watch_experts


@dataclass(frozen=True)
class Traffic:
    """Inputs of one tensor [n, c] and gradients at its outputs [n, r], for each expert."""

    inputs: list[Tensor]
    gradients: list[Tensor]


class WatchedExperts:
    """The experts of a block, with what passed them while they were watched.

    Tensors are named by the parameter inside the MLP, those of a fused parameter also by their number in it:
    `experts.gate_up_proj.0`.
    """

    def __init__(self, module: Any, part: Mlp) -> None:
        assert part.experts is not None
        self.module, self.part, self.experts = module, part, part.experts
        self._routings: list[Routing] = []
        self._gradients: list[Tensor] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Collect while the block runs forward and, batch by batch, backward."""

        def routed(routing: Routing, output: Tensor) -> None:
            self._routings.append(Routing(routing.hidden.detach(), routing.chosen, routing.weights.detach()))
            output.register_hook(self._gradients.append)  # type: ignore[no-untyped-call]

        with watch_experts(self.module, routed):
            yield

    def weights(self) -> dict[str, Tensor]:
        """Every tensor by name, [e, r, c]."""
        (fused,) = self.experts.segments
        parts = self._rows(fused).chunk(self._count, 1)
        named = {f"{self.experts.name}.{fused}.{number}": each for number, each in enumerate(parts)}
        return {**named, f"{self.experts.name}.{self.experts.output}": self._rows(self.experts.output)}

    @property
    def _count(self) -> int:
        return len(self.experts.inputs)

    def _rows(self, name: str) -> Tensor:
        return by_rows(self.part, f"{self.experts.name}.{name}", getattr(self.module, name).detach())

    def traffic(self) -> dict[str, Traffic]:
        """Inputs and gradients of every tensor of `weights`."""
        hidden = torch.cat([each.hidden for each in self._routings])
        chosen = torch.cat([each.chosen for each in self._routings])
        factors = torch.cat([each.weights for each in self._routings])
        behind = torch.cat(self._gradients)
        found = {name: Traffic([], []) for name in self.weights()}
        *inner, last = found.values()
        for expert in range(len(getattr(self.module, self.experts.output))):
            token, place = torch.where(chosen == expert)
            x, g = hidden[token], behind[token] * factors[token, place, None].to(behind)
            with torch.enable_grad():
                projected = expert_projection(self.module, self.experts, x, expert).detach().requires_grad_()
                channels = self.module._apply_gate(projected)
                (before,) = torch.autograd.grad(
                    projected_channels(self.module, self.experts, channels, expert), projected, g
                )
            interleaved = [before[:, number :: self._count] for number in range(self._count)]
            parts = interleaved if self.experts.interleaved else before.chunk(self._count, -1)
            for each, gradient in zip(inner, parts, strict=True):
                each.inputs.append(x)
                each.gradients.append(gradient)
            last.inputs.append(channels.detach())
            last.gradients.append(g)
        return found


@torch.no_grad()
def expert_loss(traffic: Traffic, weight: Tensor, values: Tensor) -> Tensor:
    """Σ (gᵀ (Q - W) x)² over experts and tokens, for a tensor W and its rounded values Q, both [e, r, c]."""
    total = torch.zeros((), device=weight.device)
    for W, Q, x, g in zip(weight, values, traffic.inputs, traffic.gradients, strict=True):
        error = x @ (Q.to(W.device) - W.float()).to(x.dtype).T
        total += (g.float() * error.float()).sum(-1).square().sum()
    return total
