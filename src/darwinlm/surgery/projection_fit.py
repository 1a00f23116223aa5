"""Fit one output projection so that the smaller residual stream matches the dense one.

A sub-layer adds c ⊙ (W x) / s to the residual stream. In most families c = 1 and s = 1. Granite multiplies by a number
a: c = a. In Gemma 2 and 3 a root-mean-square norm follows the projection. Then c is its gain times a, and s is the root
mean square of W x in the dense model, for each token. With V = diag(c) W, fitting V (x / s) to the desired increment of
the residual stream is a least-squares problem in every case. A bias stays and is subtracted from the targets.

Letters: b sequences, t tokens, r outputs, d inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.calibration.moments import CrossMoment, SecondMoment
from darwinlm.calibration.stream import output_projection
from darwinlm.families.family import ModuleKind
from darwinlm.surgery.ridge import ridge_solution, squared_error
from darwinlm.surgery.sublayers import BlockWalk

_SMALL_GAIN = 1e-4


class Moments:
    """Moments of one module's inputs and targets over all added tokens."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.inputs = SecondMoment(inputs, device)
        self.cross = CrossMoment(outputs, inputs, device)
        self.energy = 0.0
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add inputs [..., d] and their target outputs [..., r]."""
        self.inputs.add(x)
        self.cross.add(y, x)
        self.energy += float(y.double().square().sum())
        self.count += y.numel() // y.shape[-1]

    def error(self, W: Tensor) -> float:
        """E‖y - W x‖² relative to E‖y‖²."""
        energy = self.energy / self.count
        if energy == 0:
            return 0.0
        return squared_error(self.inputs.mean(), self.cross.mean(), energy, W) / energy


@dataclass(frozen=True)
class Fit:
    """Result for one module.

    Attributes:
        weight: [r, d] float32, the best weights on validation text.
        ridge: Their λ; None if they are the given weights.
        before: Validation error of the given weights, relative to E‖y‖².
        after: Validation error of the best weights.
    """

    weight: Tensor
    ridge: float | None
    before: float
    after: float


def fit_output(
    seen: Moments,
    held_out: Moments,
    W0: Tensor,
    gain: Tensor | None,
    ridges: Iterable[float],
    name: str,
) -> Fit:
    """The best weights on held-out text: the given ones or a ridge solution.

    Args:
        seen: Moments on the fitted text.
        held_out: Moments on validation text.
        W0: [r, d] float32, centre of the regularisation.
        gain: c, [r]; None if it is 1.
        ridges: Candidate values of λ.
        name: Name of the module, for messages.

    Raises:
        NumericsError: Moments aren't finite or can't be factorised.
    """
    V0 = W0 if gain is None else gain[:, None] * W0
    best, chosen, before = W0, None, held_out.error(V0)
    least = before
    for ridge in ridges:
        V = ridge_solution(seen.inputs.mean(), seen.cross.mean(), V0, ridge, name=name)
        W = V
        if gain is not None:
            # If the gain is nearly zero, the output doesn't reach the residual stream.
            seen_by = gain.abs() > _SMALL_GAIN * gain.abs().max()
            W = torch.where(seen_by[:, None], V / torch.where(seen_by, gain, 1.0)[:, None], W0)
            V = gain[:, None] * W
        error = held_out.error(V)
        if error < least:
            best, chosen, least = W, ridge, error
    return Fit(best, chosen, before, least)


@torch.no_grad()
def output_gain(layer: nn.Module, checkpoint: Any, kind: ModuleKind) -> Tensor | None:
    """Gain c of a module in a loaded block, [r] float32; None if it is 1."""
    family = checkpoint.family
    part = family.module(kind)
    scale = family.residual_scale(checkpoint.config)
    output = output_projection(layer, family, kind)
    assert output is not None
    if part.post_norm is None:
        return None if scale == 1 else torch.full((output.out_features,), scale, device=output.weight.device)
    # The norm of a vector of ones is its gain, however the norm stores it.
    ones = torch.ones(1, 1, output.out_features, dtype=output.weight.dtype, device=output.weight.device)
    gain: Tensor = getattr(layer, part.post_norm)(ones)[0, 0].float() * scale
    return gain


@contextmanager
def watched_spread(walk: BlockWalk, kind: ModuleKind) -> Iterator[list[Tensor]]:
    """Collect s of each batch, [b, t, 1], while the dense stream finishes a module; empty if s is 1."""
    family = walk.stream.checkpoint.family
    output = output_projection(walk.stream.decoder.blocks[walk.block], family, kind)
    spread: list[Tensor] = []
    if output is None or family.module(kind).post_norm is None:
        yield spread
        return
    handle = output.register_forward_hook(
        lambda _, __, z: spread.append(z.float().square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6))
    )
    try:
        yield spread
    finally:
        handle.remove()


def module_moments(
    walk: BlockWalk,
    kind: ModuleKind,
    targets: Iterable[Tensor],
    spread: list[Tensor],
    gain: Tensor | None,
) -> Moments:
    """Moments of a module's inputs in the smaller stream and of the increments that would match the dense stream.

    The walk is the smaller stream, before the module, which must exist. `targets` are the dense residual stream after
    the module, [b, t, m] for each batch; `spread` is s of each batch, empty if s is 1; `gain` is c, [r] or None.
    """
    stream = walk.stream
    output = output_projection(stream.decoder.blocks[walk.block], stream.checkpoint.family, kind)
    assert output is not None
    moments = Moments(output.in_features, output.out_features, stream.device)
    for index, ((x, before), target) in enumerate(zip(walk.inputs(kind), targets, strict=True)):
        wanted = target.float() - before.float()
        bias = None if output.bias is None else output.bias.float()
        if bias is not None and gain is not None:
            bias = gain * bias
        scaled = x.float() / spread[index] if spread else x
        if spread and bias is not None:
            bias = bias / spread[index]
        if bias is not None:
            wanted = wanted - bias
        moments.add(scaled, wanted)
    return moments
