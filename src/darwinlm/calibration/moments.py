"""Second moments of a linear layer's inputs, accumulated from batches.

Letters: n tokens, d input columns. Source: the H of OBS and ZipLM (arXiv 2302.04089), DarwinLM §3.
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
