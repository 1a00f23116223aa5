"""Fit one output projection so that the smaller residual stream matches the dense one.

A sub-layer adds c ⊙ (W x) / s to the residual stream. In most families c = 1 and s = 1. Granite multiplies by a number
a: c = a. In Gemma 2 and 3 a root-mean-square norm follows the projection. Then c is its gain times a, and s is the root
mean square of W x in the dense model, for each token (`norm_divisor`). With V = diag(c) W, fitting V (x / s) to the
desired increment of the residual stream is a least-squares problem in every case. A bias stays and is subtracted from
the targets.

The norm divides by the length of the new output, not by that of the dense one. A channel with a small gain would need
a large row of W for its target, and that row would shrink all others: gains of one norm of Gemma 3 270M range from
0.01 to 500. So the mean square of W (x / s) is limited to 1, the value of the dense model. With a multiplier μ of this
constraint, the solution is W_i = c_i V_i / (c_i² + μ) for each row i. Errors on validation text are measured behind
the norm.

In BERT, a norm follows the sum of the stream and the increment. Fits and their errors are in front of it: the target is
the sum in the dense model.

Letters: b sequences, t tokens, r outputs, d inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.walk.expert_inputs import expert_module
from darwinlm.model.walk.moments import SecondMoment
from darwinlm.model.walk.outputs import norm_divisor, norm_gain, output_projection
from darwinlm.model.walk.sublayers import BlockWalk
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact, exact_device
from darwinlm.steps.refit.ridge import ridge_solution, squared_error

RIDGES = (0.03, 0.3)
"""Candidate values of λ, relative to the mean of the diagonal. Five values from 0.01 to 1 gained nothing more; see
docs/notebook/training.md."""
_SMALL_GAIN = 1e-4
_HALVINGS = 60


class Moments:
    """Moments of one module's inputs and targets over the tokens of all processes.

    Args:
        inputs: d.
        outputs: r.
        device: Device of the sums.
        pairs: Inputs [..., d] and their target outputs [..., r] of this process.

    Attributes:
        H: E[x xᵀ], [d, d] float32.
        C: E[y xᵀ], [r, d] float32.
        energy: E‖y‖².
        count: Number of tokens.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        second, cross = SecondMoment(inputs, device=device), SecondMoment(inputs, outputs, device=device)
        energy = torch.zeros((), dtype=torch.float64, device=exact_device(device))
        for x, y in pairs:
            second.add(x)
            cross.add(x, y)
            energy += exact(y).double().square().sum()
        self.H, self.C = second.take(parallel.all_reduce), cross.take(parallel.all_reduce)
        sums = torch.tensor([float(energy), second.count], dtype=torch.float64)
        summed, self.count = parallel.all_reduce(sums).tolist()
        self.energy = summed / max(self.count, 1)

    def errors(self, candidates: Sequence[Float[Tensor, "r d"]]) -> list[float]:
        """E‖y - W x‖² relative to E‖y‖² of each of some W, [r, d]."""
        if self.energy == 0:
            return [0.0] * len(candidates)
        return [squared_error(self.H, self.C, self.energy, W) / self.energy for W in candidates]


def fit_output(
    seen: Moments,
    errors: Callable[[Sequence[Tensor]], Sequence[float]],
    W0: Float32[Tensor, "r d"],
    gain: Float[Tensor, " r"] | None,
    name: str,
    *,
    normed: bool = False,
) -> tuple[Float32[Tensor, "r d"], float | None]:
    """The best weights on held-out text: the given ones or a ridge solution.

    Args:
        seen: Moments on the fitted text.
        errors: Validation error of each of some weights, relative to E‖y‖².
        W0: [r, d] float32, centre of the regularisation.
        gain: c, [r]; None if it is 1.
        name: Name of the module, for messages.
        normed: Whether a norm follows.

    Returns:
        The weights, [r, d] float32, and their λ; None if they are the given ones.

    Raises:
        NumericsError: Moments aren't finite or can't be factorised.
    """
    V0 = W0 if gain is None else gain[:, None] * W0
    candidates = [W0]
    for ridge in RIDGES:
        V = ridge_solution(seen.H, seen.C, V0, ridge, name=name)
        if gain is None:
            candidates.append(V)
            continue
        # If the gain is nearly zero, the output doesn't reach the residual stream.
        seen_by = gain.abs() > _SMALL_GAIN * gain.abs().max()
        squared = torch.where(seen_by, gain, 1.0).square()
        energies = (((V @ seen.H) * V).sum(1) / squared).where(seen_by, 0.0)
        inverse = gain / (squared + (limit(energies, squared) if normed else 0.0))
        candidates.append(torch.where(seen_by[:, None], V * inverse[:, None], W0))
    measured = errors(candidates)
    best = min(range(len(candidates)), key=measured.__getitem__)
    return candidates[best], (None, *RIDGES)[best]


def limit(energies: Float[Tensor, " r"], squared_gains: Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """The multiplier μ ≥ 0 that limits the mean square of an output to 1; 0 if that isn't above 1.

    `energies` e are the mean squares of the channels for μ = 0, [r]. With μ, channel i has the energy eᵢ (cᵢ² / (cᵢ² +
    μ))²; the squared gains c² are above zero.
    """
    e, c2 = exact(energies).double(), exact(squared_gains).double()
    low, high = e.new_zeros(()), (e * c2.square()).mean().sqrt()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = (e * (c2 / (c2 + middle)).square()).mean() > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(e.mean() > 1, high, 0.0).to(energies.dtype).to(energies.device)


@torch.no_grad()
def output_gain(layer: nn.Module, checkpoint: Checkpoint, kind: ModuleKind) -> Float[Tensor, " r"] | None:
    """Gain c of a module in a loaded block, [r] float32; None if it is 1."""
    scale: float = checkpoint.family.residual_scale(checkpoint.config)
    output = output_projection(layer, checkpoint.family, kind)
    assert output is not None
    gain = norm_gain(layer, checkpoint, kind)
    if gain is None:
        return None if scale == 1 else torch.full((output.out_features,), scale, device=output.weight.device)
    return gain * scale


@contextmanager
def watched_spread(walk: BlockWalk, kind: ModuleKind) -> Iterator[list[Tensor]]:
    """Collect s of each batch, [b, t, 1], while the dense stream finishes a module; empty if s is 1.

    Of a mixture in front of a norm the outputs of its experts are collected instead, [b · t, m].
    """
    checkpoint, block = walk.stream.checkpoint, walk.stream.decoder.blocks[walk.block]
    output: nn.Module | None = output_projection(block, checkpoint.family, kind)
    mixture = expert_module(block, checkpoint.family.mlp) if kind == "mlp" else None
    output = output if mixture is None else mixture
    spread: list[Tensor] = []
    if output is None or checkpoint.family.module(kind).post_norm is None:
        yield spread
        return

    def watch(_: nn.Module, __: object, z: Tensor) -> None:
        divisor = z if mixture is not None else norm_divisor(checkpoint, kind, z)
        assert divisor is not None
        spread.append(divisor)

    with output.register_forward_hook(watch):
        yield spread


@contextmanager
def watched_sums(walk: BlockWalk, kind: ModuleKind) -> Iterator[list[Tensor]]:
    """Collect the inputs of a norm behind the sum, [b, t, m] for each batch, while the dense stream finishes a module.

    Empty if there is no such norm, or if the module is gone.
    """
    decoder, sums = walk.stream.decoder, list[Tensor]()
    name, block = decoder.family.module(kind).sum_norm, decoder.blocks[walk.block]
    if name is None or output_projection(block, decoder.family, kind) is None:
        yield sums
        return
    with block.get_submodule(name).register_forward_pre_hook(lambda _, arguments: sums.append(arguments[0])):
        yield sums


def module_moments(
    walk: BlockWalk, kind: ModuleKind, targets: Iterable[Tensor], spread: list[Tensor], gain: Tensor | None
) -> Moments:
    """Moments of a module's inputs in the smaller stream and of the increments that would match the dense stream.

    The walk is the smaller stream, before the module, which must exist. `targets` are the dense residual stream after
    the module, or what a norm behind the sum is applied to, [b, t, m] for each batch; `spread` is s of each batch,
    empty if s is 1; `gain` is c, [r] or None.
    """
    stream = walk.stream
    output = output_projection(stream.decoder.blocks[walk.block], stream.checkpoint.family, kind)
    assert output is not None
    bias = None if output.bias is None else output.bias.float()
    if bias is not None and gain is not None:
        bias = gain * bias

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for index, ((x, before), target) in enumerate(zip(walk.inputs(kind), targets, strict=True)):
            wanted = target.float() - before.float()
            if bias is not None:
                wanted = wanted - (bias / spread[index] if spread else bias)
            yield (x.float() / spread[index] if spread else x), wanted

    return Moments(output.in_features, output.out_features, stream.device, pairs())


@torch.no_grad()
def errors_behind_norm(
    walk: BlockWalk, kind: ModuleKind, targets: Iterable[Tensor], candidates: Sequence[Tensor]
) -> list[float]:
    """E‖y - y'‖² relative to E‖y‖² of output projections [r, d] in front of a norm, for the increments y' they cause.

    Walk and targets are as in `module_moments`.
    """
    layer, family = walk.stream.decoder.blocks[walk.block], walk.stream.checkpoint.family
    output, post_norm = output_projection(layer, family, kind), family.module(kind).post_norm
    assert output is not None
    assert post_norm is not None
    norm, scale = getattr(layer, post_norm), family.residual_scale(walk.stream.checkpoint.config)
    sums = torch.zeros(len(candidates) + 1, dtype=torch.float64)
    for (x, before), target in zip(walk.inputs(kind), targets, strict=True):
        wanted = target.float() - before.float()
        sums[-1] += float(exact(wanted).double().square().sum())
        for index, W in enumerate(candidates):
            increment = norm(nn.functional.linear(x, W.to(x.dtype), output.bias)).float() * scale
            sums[index] += float(exact(wanted - increment).double().square().sum())
    *errors, energy = parallel.all_reduce(sums).tolist()
    return [error / energy if energy else 0.0 for error in errors]
