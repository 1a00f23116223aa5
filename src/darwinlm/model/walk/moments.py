"""Second moments of a linear layer's inputs, accumulated from batches.

Letters: n tokens, d input columns, e experts. Source: the H of OBS and ZipLM (arXiv 2302.04089), DarwinLM §3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import BFloat16, Float, Float32
from torch import Tensor

from darwinlm.runtime.compute import exact_device

PANEL = 512
"""Rows of a symmetric moment that are summed at once, from the diagonal on."""


class _Moment:
    """A sum of products in float32, and the number of tokens in it (`count`)."""

    def __init__(self, *shape: int, device: torch.device | str) -> None:
        self._sum = torch.zeros(*shape, dtype=torch.float32, device=device)
        self.count = 0

    def take(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Float32[Tensor, "*shape"]:
        """The sum divided by the number of tokens; `total` sums over processes in place. Then nothing can be added."""
        tokens = total(torch.tensor([self.count], dtype=torch.float64, device=exact_device(self._sum.device)))
        mean, self._sum = total(self._sum).div_(max(float(tokens), 1.0)), self._sum.new_empty(0)
        return mean


class SecondMoment(_Moment):
    """E[x xᵀ], [d, d], over all added tokens; E[y xᵀ], [r, d], with a number of `outputs`.

    Of E[x xᵀ] only blocks from the diagonal on are summed, which is little more than half of the work.
    """

    def __init__(self, inputs: int, outputs: int | None = None, *, device: torch.device | str = "cpu") -> None:
        super().__init__(inputs if outputs is None else outputs, inputs, device=device)
        self._panels = [slice(at, at + PANEL) for at in range(0, inputs, PANEL)] if outputs is None else []

    def add(self, inputs: Float[Tensor, "*n d"], outputs: Float[Tensor, "*n r"] | None = None) -> None:
        """Add inputs [..., d], and their outputs [..., r] if there are any."""
        right = inputs.reshape(-1, inputs.shape[-1])
        self.count += right.shape[0]
        if outputs is not None:
            add_products_(self._sum, outputs.reshape(-1, outputs.shape[-1]), right)
        elif not multiplies_into_float32(right.device):
            right = right.float()  # once for all panels
        for panel in self._panels:
            add_products_(self._sum[panel, panel.start :], right[:, panel], right[:, panel.start :])

    def take(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Float32[Tensor, "*shape"]:
        """As in the base class; the blocks below the diagonal mirror those above it."""
        mean = super().take(total)
        for panel in self._panels:
            mean[panel.stop :, panel] = mean[panel, panel.stop :].T
        return mean


class ExpertMoments(_Moment):
    """Second moments of the inputs of several experts, [e, d, d], each weighted by the factor on its output.

    The sum over an expert's tokens is divided by the number of *all* tokens. So an expert that is used often and with
    large weights counts more. The squared errors of the experts then add up to the error of the whole mixture, if the
    errors of different experts are uncorrelated.
    """

    def __init__(self, experts: int, width: int, device: torch.device | str = "cpu") -> None:
        super().__init__(experts, width, width, device=device)

    def add(self, expert: int, inputs: Float32[Tensor, "n d"]) -> None:
        """Add the inputs [n, d] of one expert, float32, multiplied by the factors on its outputs."""
        self._sum[expert].addmm_(inputs.T, inputs)


def add_products_(total: Float32[Tensor, "p q"], left: Float[Tensor, "n p"], right: Float[Tensor, "n q"]) -> None:
    """Add leftᵀ right to a float32 sum [p, q], of floating matrices [n, p] and [n, q].

    A product of two bfloat16 numbers is exact in float32. So a GPU multiplies bfloat16 matrices in its bfloat16 units,
    which sum in float32. This is as exact as float32 without TF32, and many times faster. A float32 matrix on the left
    of a bfloat16 one is split into two: their sum keeps 16 of its 24 bits, or 2⁻¹⁷ of each number.
    """
    if right.dtype == torch.bfloat16 and multiplies_into_float32(total.device):
        for part in (left,) if left.dtype == torch.bfloat16 else halves(left):
            total += torch.mm(part.T, right, out_dtype=torch.float32)
    else:
        total.addmm_(left.float().T, right.float())


def halves(tensor: Float32[Tensor, "*n"]) -> tuple[BFloat16[Tensor, "*n"], BFloat16[Tensor, "*n"]]:
    """Two bfloat16 tensors whose sum is a float32 tensor, up to 2⁻¹⁷ of each number."""
    high = tensor.to(torch.bfloat16)
    return high, (tensor - high).to(torch.bfloat16)


def multiplies_into_float32(device: torch.device) -> bool:
    """Whether a device can return bfloat16 products in float32."""
    return device.type == "cuda"
