"""Second moments of a linear layer's inputs, accumulated from batches.

Letters: n tokens, d input columns, e experts. Source: the H of OBS and ZipLM (arXiv 2302.04089), DarwinLM §3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor


class SecondMoment:
    """E[x xᵀ] over all added tokens, accumulated in float32."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape [..., d]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        add_products_(self._sum, rows, rows)
        self.count += rows.shape[0]

    def mean(self) -> Tensor:
        """E[x xᵀ], [d, d] float32."""
        return self._sum / max(self.count, 1)

    def take(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
        """E[x xᵀ] without a copy; nothing can be added afterwards.

        Args:
            total: In-place sum of a tensor over several processes.
        """
        mean, self._sum = _total_mean(self._sum, self.count, total), self._sum.new_empty(0)
        return mean


class ExpertMoments:
    """Second moments of the inputs of several experts, each weighted by the factor on its output.

    The sum over an expert's tokens is divided by the number of *all* tokens. So an expert that is used often and with
    large weights counts more. The squared errors of the experts then add up to the error of the whole mixture, if the
    errors of different experts are uncorrelated.
    """

    def __init__(self, experts: int, width: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(experts, width, width, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, expert: int, inputs: Tensor) -> None:
        """Add the inputs [n, d] of one expert, float32, multiplied by the factors on its outputs."""
        self._sum[expert].addmm_(inputs.T, inputs)

    def mean(self) -> Tensor:
        """[e, d, d] float32, over the tokens counted in `count`."""
        return self._sum / max(self.count, 1)

    def take(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
        """As `mean`, without a copy; see `SecondMoment.take`."""
        mean, self._sum = _total_mean(self._sum, self.count, total), self._sum.new_empty(0)
        return mean


class CrossMoment:
    """E[y xᵀ] over all added tokens, accumulated in float32."""

    def __init__(self, outputs: int, inputs: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(outputs, inputs, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """Add outputs [..., r] and their inputs [..., d]."""
        right = inputs.reshape(-1, inputs.shape[-1])
        add_products_(self._sum, outputs.reshape(-1, outputs.shape[-1]), right)
        self.count += right.shape[0]

    def mean(self) -> Tensor:
        """E[y xᵀ], [r, d] float32."""
        return self._sum / max(self.count, 1)

    def take(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
        """As `mean`, without a copy; see `SecondMoment.take`."""
        mean, self._sum = _total_mean(self._sum, self.count, total), self._sum.new_empty(0)
        return mean


def add_products_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ right to a float32 sum.

    A product of two bfloat16 numbers is exact in float32. So a GPU multiplies bfloat16 matrices in its bfloat16 units,
    which sum in float32. This is as exact as float32 without TF32, and many times faster.

    Args:
        total: [p, q] float32.
        left: [n, p] floating.
        right: [n, q] floating.
    """
    if left.dtype == right.dtype == torch.bfloat16 and multiplies_into_float32(total.device):
        total += torch.mm(left.T, right, out_dtype=torch.float32)
    else:
        total.addmm_(left.float().T, right.float())


def multiplies_into_float32(device: torch.device) -> bool:
    """Whether a device can return bfloat16 products in float32: CUDA, from PyTorch 2.8 on."""
    return device.type == "cuda" and _KNOWS_OUT_DTYPE


_KNOWS_OUT_DTYPE: Final = hasattr(torch.ops.aten.mm, "dtype")


def _total_mean(total: Tensor, count: int, add_up: Callable[[Tensor], Tensor]) -> Tensor:
    """Total divided by the number of tokens, both summed over all processes; in place."""
    tokens = add_up(torch.tensor([count], dtype=torch.float64, device=total.device))
    return add_up(total).div_(max(float(tokens), 1.0))
