"""Second moments of a linear layer's inputs, accumulated from batches.

Letters: n tokens, d input columns, e experts. Source: the H of OBS and ZipLM (arXiv 2302.04089), DarwinLM §3.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SecondMoment:
    """E[x xᵀ] over everything that was added, accumulated in float32."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape [..., d]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self._sum.addmm_(rows.T, rows)
        self.count += rows.shape[0]

    def mean(self) -> Tensor:
        """E[x xᵀ], [d, d] float32."""
        return self._sum / max(self.count, 1)


class ExpertMoments:
    """Second moments of the inputs of several experts, each weighted by how much its output counts.

    The sum over an expert's tokens is divided by *all* tokens, so that an expert that is asked for often and strongly
    weighs more: the squared errors of the experts then add up to the error of the whole mixture, as far as the errors
    of different experts are uncorrelated.
    """

    def __init__(self, experts: int, width: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(experts, width, width, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, expert: int, inputs: Tensor, weights: Tensor) -> None:
        """Add the inputs [n, d] of one expert, whose outputs are multiplied by weights [n]."""
        rows = inputs.float() * weights.float()[:, None]
        self._sum[expert].addmm_(rows.T, rows)

    def mean(self) -> Tensor:
        """[e, d, d] float32, over the tokens counted in `count`."""
        return self._sum / max(self.count, 1)


class CrossMoment:
    """E[y xᵀ] over everything that was added, accumulated in float32."""

    def __init__(self, outputs: int, inputs: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(outputs, inputs, dtype=torch.float32, device=device)
        self.count = 0

    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """Add outputs [..., r] and the inputs [..., d] they belong to."""
        left = outputs.reshape(-1, outputs.shape[-1]).float()
        right = inputs.reshape(-1, inputs.shape[-1]).float()
        self._sum.addmm_(left.T, right)
        self.count += right.shape[0]

    def mean(self) -> Tensor:
        """E[y xᵀ], [r, d] float32."""
        return self._sum / max(self.count, 1)
