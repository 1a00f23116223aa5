"""Fit the output projections of a mixture's experts towards the dense residual stream.

On the tokens routed to it, an expert adds its projection of g x to the residual stream. Here x are its channels and g
is the router's weight. With the other experts fixed, the target is its present contribution plus the remaining
difference to the dense stream. The fit is the same ridge regression as for a single projection. Experts are fitted in
turn; each fit takes the earlier ones into account.

If a norm follows the experts (Gemma 4), the target is their output in the dense model instead, and both are divided by
what the norm divides that output by.

Letters: n tokens, m residual width, d channels of an expert, e experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darwinlm.model.families.parts import Experts
from darwinlm.model.walk.expert_inputs import Routing, expert_inputs, expert_module, watch_experts
from darwinlm.model.walk.outputs import norm_divisor
from darwinlm.model.walk.sublayers import BlockWalk
from darwinlm.steps.refit.projection_fit import Moments, fit_output

ROUNDS = 2
"""Number of fits of each expert; a second round corrects fits that were made before later experts changed."""


@dataclass
class Mixture:
    """A mixture in the smaller stream, on this process's share of one text.

    Attributes:
        module: Module of the experts.
        experts: Names of its tensors.
        routing: Routing of each batch.
        missing: Target minus the smaller model's value, [n, m] float32 for each batch.
        scale: Factor on the experts' output before it is added to the residual stream.
        divisors: What a norm behind the experts divides their output by, [n, 1] for each batch; empty without a norm.
    """

    module: nn.Module
    experts: Experts
    routing: list[Routing]
    missing: list[Tensor]
    scale: float
    divisors: Sequence[Tensor] = ()

    def batches_of(self, expert: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """For each batch: tokens [n] of an expert, inputs of its projection [n, d], and `missing`."""
        for index, (routing, missing) in enumerate(zip(self.routing, self.missing, strict=True)):
            token, x = expert_inputs(self.module, self.experts, routing, expert)
            yield token, x / self.divisors[index][token] if self.divisors else self.scale * x, missing

    def moments(self, expert: int, W: Tensor) -> Moments:
        """Moments of an expert's inputs and targets, for its weights W [m, d]."""
        pairs = ((x, x @ W.T + missing[token]) for token, x, missing in self.batches_of(expert))
        return Moments(W.shape[1], W.shape[0], W.device, pairs)

    def apply_change(self, expert: int, change: Tensor) -> None:
        """Update `missing` after a change [m, d] of an expert's weights."""
        for token, x, missing in self.batches_of(expert):
            missing.index_add_(0, token, x @ change.T, alpha=-1)


@torch.no_grad()
def mixture_of(walk: BlockWalk, targets: Iterable[Tensor], outputs: Sequence[Tensor] = ()) -> Mixture:
    """The mixture of the current block.

    It stores the mixture's input and the missing part for the whole text, besides the residual streams.

    Args:
        walk: The smaller stream, before the mixture.
        targets: Dense residual stream after the mixture, [b, t, m] for each batch.
        outputs: Output of the dense experts, [b · t, m] for each batch; empty without a norm behind them.
    """
    checkpoint = walk.stream.checkpoint
    part, scale = checkpoint.family.mlp, checkpoint.family.residual_scale(checkpoint.config)
    module = expert_module(walk.stream.decoder.blocks[walk.block], part)
    assert module is not None
    assert part.experts is not None
    normed = part.post_norm is not None
    routing: list[Routing] = []
    own, missing, divisors = list[Tensor](), list[Tensor](), list[Tensor]()

    def note(called: Routing, output: Tensor) -> None:
        routing.append(called)
        if normed:
            own.append(output)

    with watch_experts(module, note):
        for after, target in zip(walk.ahead("mlp"), targets, strict=True):
            if not normed:
                missing.append((target.float() - after.float()).flatten(0, 1))
    for output, goal in zip(own, outputs, strict=True):
        divisor = norm_divisor(checkpoint, "mlp", goal)
        assert divisor is not None
        missing.append((goal.float() - output.float()) / divisor)
        divisors.append(divisor)
    return Mixture(module, part.experts, routing, missing, scale, divisors)


@torch.no_grad()
def fit_experts(seen: Mixture, held_out: Mixture, W0: Tensor, name: str) -> tuple[Tensor, float | None]:
    """The best weights of all experts; every accepted fit lowers the error on held-out text.

    An expert without held-out tokens keeps its weights. W0, [e, m, d] float32, are the stitched weights.

    Returns:
        Weights [e, m, d], and the most frequent λ; None if no expert has other weights.

    Raises:
        NumericsError: Moments aren't finite or can't be factorised.
    """
    weights, chosen = W0.clone(), Counter[float]()
    for expert in list(range(len(W0))) * ROUNDS:
        W = weights[expert].clone()
        fitted, unseen = seen.moments(expert, W), held_out.moments(expert, W)
        if fitted.count == 0 or unseen.count == 0:
            continue
        best, ridge = fit_output(fitted, unseen.errors, W, None, f"{name} expert {expert}")
        if ridge is not None:
            chosen[ridge] += 1
            weights[expert] = best
            for mixture in (seen, held_out):
                mixture.apply_change(expert, best - W)
    return weights, chosen.most_common(1)[0][0] if chosen else None
