"""Learned masks between zero and one: the hard concrete distribution.

Letters: n units, α [n] their parameters, u uniform noise. A stretched and clipped concrete variable

    s = σ((log u - log(1 - u) + log α) / β),   z = min(1, max(0, s (ζ - γ) + γ))

is exactly zero or one with positive probability, and P(z ≠ 0) = σ(log α - β log(-γ / ζ)) is the expected share of
kept units. Source: Louizos et al. 2018 (arXiv 1712.01312); used by Sheared-LLaMA (arXiv 2310.06694, section 2.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


class HardConcrete(nn.Module):
    """Masks of n units."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        # Masks start near one; the noise breaks ties.
        self.log_alpha = nn.Parameter(2 + 0.01 * torch.randn(n, generator=generator))

    def sample(self) -> Tensor:
        """One draw, [n] in [0, 1], with gradients to the parameters."""
        u = torch.rand(self.log_alpha.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6).to(self.log_alpha)
        s = torch.sigmoid((u.log() - (-u).log1p() + self.log_alpha) / BETA)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def expected(self) -> Tensor:
        """Expected share of kept units, a scalar with gradients."""
        return torch.sigmoid(self.log_alpha - BETA * math.log(-GAMMA / ZETA)).mean()

    def final(self) -> Tensor:
        """The masks without noise, [n] in [0, 1]."""
        return (torch.sigmoid(self.log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1).detach()
