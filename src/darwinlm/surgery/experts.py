"""Fit the output projections of a mixture's experts toward the dense residual stream.

An expert adds its projection of g x to the residual stream, x being its channels and g the router's weight for it, on
the tokens that are routed to it. With the other experts as they stand, what it should add to a token is its own share
plus all that the smaller stream lacks there, and the fit is the same ridge regression as for a single projection. The
experts take turns, each one seeing what those before it have mended.

Letters: n tokens, m residual width, d channels of an expert, e experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.calibration.experts import Routing, expert_inputs, expert_module, watch_routing
from darwinlm.families.family import Experts
from darwinlm.surgery.projection_fit import Fit, Moments, fit_output
from darwinlm.surgery.sublayers import BlockWalk

ROUNDS = 2
"""How often each expert is fitted: the first fits are made while later experts are still to be mended."""


@dataclass
class Mixture:
    """A mixture in the smaller stream, over one text.

    Attributes:
        module: Module of the experts.
        experts: Names of its tensors.
        routing: Routing of each batch.
        missing: Dense residual stream after the mixture minus the smaller one, [n, m] float32 for each batch.
        scale: Factor on the experts' output before it is added to the residual stream.
    """

    module: Any
    experts: Experts
    routing: list[Routing]
    missing: list[Tensor]
    scale: float

    def asked(self, expert: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """For each batch the tokens [n] that ask an expert, what goes into its projection [n, d], what is missing."""
        for routing, missing in zip(self.routing, self.missing, strict=True):
            token, x = expert_inputs(self.module, self.experts, routing, expert)
            yield token, self.scale * x, missing

    def moments(self, expert: int, W: Tensor) -> Moments:
        """Moments of an expert's inputs and of what it should add, its weights being W [m, d]."""
        found = Moments(W.shape[1], W.shape[0], W.device)
        for token, x, missing in self.asked(expert):
            found.add(x, x @ W.T + missing[token])
        return found

    def mend(self, expert: int, change: Tensor) -> None:
        """Count a change [m, d] of an expert's weights in."""
        for token, x, missing in self.asked(expert):
            missing.index_add_(0, token, x @ change.T, alpha=-1)

    @property
    def lacking(self) -> float:
        """Summed squares of what is missing."""
        return sum(float(missing.double().square().sum()) for missing in self.missing)


@torch.no_grad()
def mixture_of(walk: BlockWalk, targets: Iterable[Tensor]) -> tuple[Mixture, float]:
    """The mixture of the block at hand, and the summed squares of what it should add to the residual stream.

    It keeps the mixture's input and what is missing for the whole text, beside the residual streams.

    Args:
        walk: The smaller stream, before the mixture.
        targets: The dense residual stream behind it, [b, t, m] for each batch.
    """
    checkpoint = walk.stream.checkpoint
    part = checkpoint.family.mlp
    module = expert_module(getattr(walk.stream.decoder.blocks[walk.block], part.name), part.experts)
    assert module is not None
    assert part.experts is not None
    assert part.post_norm is None, "a norm behind the experts isn't linear in their weights"
    routing: list[Routing] = []
    missing, energy = [], 0.0
    handle = watch_routing(module, routing.append)
    try:
        for before, after, target in zip(walk.stream.hidden, walk.ahead("mlp"), targets, strict=True):
            energy += float((target.double() - before.double()).square().sum())
            missing.append((target.float() - after.float()).flatten(0, 1))
    finally:
        handle.remove()
    scale = checkpoint.family.residual_scale(checkpoint.config)
    return Mixture(module, part.experts, routing, missing, scale), energy


@torch.no_grad()
def fit_experts(seen: Mixture, held_out: Mixture, energy: float, W0: Tensor, ridges: Sequence[float], name: str) -> Fit:
    """The best weights of all experts; the error on held-out text falls with every fit that is taken.

    An expert that none of the held-out tokens ask keeps its weights.

    Args:
        seen: Mixture on the fitted text.
        held_out: Mixture on validation text.
        energy: Summed squares of what the mixture should add on validation text.
        W0: [e, m, d] float32, the weights at hand.
        ridges: Strengths to try.
        name: Name of the mixture, for messages.

    Returns:
        Weights [e, m, d]; the strength that served most of the fits; errors of the whole mixture.

    Raises:
        NumericsError: Moments aren't finite or can't be factorised.
    """
    weights, chosen, before = W0.clone(), Counter[float](), held_out.lacking
    for expert in list(range(len(W0))) * ROUNDS:
        W = weights[expert].clone()
        own, unseen = seen.moments(expert, W), held_out.moments(expert, W)
        if own.count == 0 or unseen.count == 0:
            continue
        fit = fit_output(own, unseen, W, None, ridges, f"{name} expert {expert}")
        if fit.ridge is not None:
            chosen[fit.ridge] += 1
            weights[expert] = fit.weight
            for mixture in (seen, held_out):
                mixture.mend(expert, fit.weight - W)
    ridge = chosen.most_common(1)[0][0] if chosen else None
    share = 1 / energy if energy else 0.0
    return Fit(weights, ridge, before * share, held_out.lacking * share)
