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
from typing import Any

import torch
from torch import Tensor

from darwinlm.families.parts import Experts
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact
from darwinlm.streaming.experts import Routing, expert_inputs, expert_module, watch_experts
from darwinlm.streaming.outputs import norm_divisor
from darwinlm.surgery.projection_fit import Fit, Moments, fit_output
from darwinlm.surgery.sublayers import BlockWalk

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

    module: Any
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

    @property
    def remaining_error(self) -> float:
        """Summed squares of `missing` in all processes."""
        return _of_all(sum(float(exact(missing).double().square().sum()) for missing in self.missing))


def _of_all(value: float) -> float:
    return float(parallel.all_reduce(torch.tensor(value, dtype=torch.float64)))


@torch.no_grad()
def mixture_of(walk: BlockWalk, targets: Iterable[Tensor], outputs: Sequence[Tensor] = ()) -> tuple[Mixture, float]:
    """The mixture of the current block, and the summed squares of its target.

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
    made, missing, divisors, energy = list[Tensor](), list[Tensor](), list[Tensor](), 0.0

    def note(called: Routing, output: Tensor) -> None:
        routing.append(called)
        if normed:
            made.append(output)

    with watch_experts(module, note):
        for before, after, target in zip(walk.stream.hidden, walk.ahead("mlp"), targets, strict=True):
            if not normed:
                energy += float((exact(target).double() - exact(before).double()).square().sum())
                missing.append((target.float() - after.float()).flatten(0, 1))
    for output, goal in zip(made, outputs, strict=True):
        divisor = norm_divisor(checkpoint, "mlp", goal)
        assert divisor is not None
        energy += float((exact(goal).double() / exact(divisor)).square().sum())
        missing.append((goal.float() - output.float()) / divisor)
        divisors.append(divisor)
    return Mixture(module, part.experts, routing, missing, scale, divisors), _of_all(energy)


@torch.no_grad()
def fit_experts(seen: Mixture, held_out: Mixture, energy: float, W0: Tensor, ridges: Sequence[float], name: str) -> Fit:
    """The best weights of all experts; every accepted fit lowers the error on held-out text.

    An expert without held-out tokens keeps its weights. W0, [e, m, d] float32, are the stitched weights, `ridges` the
    candidate values of λ, `energy` the summed squares of the mixture's target on validation text.

    Returns:
        Weights [e, m, d], the most frequent λ, and errors of the whole mixture.

    Raises:
        NumericsError: Moments aren't finite or can't be factorised.
    """
    weights, chosen, before = W0.clone(), Counter[float](), held_out.remaining_error
    for expert in list(range(len(W0))) * ROUNDS:
        W = weights[expert].clone()
        fitted, unseen = seen.moments(expert, W), held_out.moments(expert, W)
        if fitted.count == 0 or unseen.count == 0:
            continue
        fit = fit_output(fitted, unseen.errors, W, None, ridges, f"{name} expert {expert}")
        if fit.ridge is not None:
            chosen[fit.ridge] += 1
            weights[expert] = fit.weight
            for mixture in (seen, held_out):
                mixture.apply_change(expert, fit.weight - W)
    ridge = chosen.most_common(1)[0][0] if chosen else None
    share = 1 / energy if energy else 0.0
    return Fit(weights, ridge, before * share, held_out.remaining_error * share)
