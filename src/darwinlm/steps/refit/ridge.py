"""Ridge regression towards given weights, from second moments.

Letters: r outputs, d inputs. With inputs X and target outputs Y, ‖W X - Y‖² + λ ‖W - W₀‖² is minimal at
W = (Y Xᵀ + λ W₀)(X Xᵀ + λ I)⁻¹. H = E[x xᵀ], C = E[y xᵀ] and E‖y‖² are all that is needed of X and Y.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import NumericsError


@torch.no_grad()
def ridge_solution(
    H: Float[Tensor, "d d"], C: Float[Tensor, "r d"], W0: Float[Tensor, "r d"], ridge: float, *, name: str = "module"
) -> Float32[Tensor, "r d"]:
    """Weights that fit the outputs, regularised towards given weights.

    Args:
        H: [d, d] floating, E[x xᵀ].
        C: [r, d] floating, E[y xᵀ].
        W0: [r, d] floating, centre of the regularisation.
        ridge: λ relative to the mean of the diagonal of H.
        name: Name of the module, for messages.

    Returns:
        [r, d] float32, where W0 is.

    Raises:
        NumericsError: An input isn't finite, or H + λI can't be factorised.
    """
    if not all(bool(torch.isfinite(matrix).all()) for matrix in (H, C, W0)):
        raise NumericsError(f"{name}: the moments of the refit hold NaN or infinity")
    scale, device = float(H.diagonal().mean()), W0.device
    if scale == 0:
        return W0.float()
    H, C, W0 = exact(H), exact(C), exact(W0)
    strength = ridge * scale
    damped = H.to(torch.float64, copy=True)
    damped.diagonal().add_(strength)
    L, info = torch.linalg.cholesky_ex(damped, out=(damped, torch.empty((), dtype=torch.int32, device=damped.device)))
    if bool(info != 0):
        raise NumericsError(
            f"{name}: the moments of the refit can't be factorised; use more calibration text, or refit.tokens=0, "
            "which skips the refit"
        )
    wanted = W0.to(torch.float64, copy=True).mul_(strength).add_(C)
    return torch.cholesky_solve(wanted.T, L).T.float().to(device)


@torch.no_grad()
def squared_error(H: Float[Tensor, "d d"], C: Float[Tensor, "r d"], energy: float, W: Float[Tensor, "r d"]) -> float:
    """E‖W x - y‖² from moments: tr(W H Wᵀ) - 2 tr(W Cᵀ) + E‖y‖², with H [d, d], C [r, d] and W [r, d]."""
    W64, H64, C64 = (exact(matrix).double() for matrix in (W, H, C))
    return float(((W64 @ H64) * W64).sum() - 2 * (W64 * C64).sum() + energy)
