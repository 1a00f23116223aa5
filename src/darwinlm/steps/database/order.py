"""Removal order of the inputs of a linear map.

Letters used below::

    r    outputs: rows of W                    d    inputs: columns of W, rows and columns of H
    n    units, each a set of u columns        m    units still in the arrays (removed ones are dropped in batches)
    H    E[x xᵀ], second moment of the inputs  S    second moment of the output gradients, optional
    C    inverse of the damped H               G    Wᵀ S W, or Wᵀ W without S

The loop is in `elimination`; this module computes its inputs C and G, and checks them.

All columns are scaled to ``H_jj = 1``. This changes no cost, and makes ``C_jj`` the variance inflation factor of column
j. It measures the cancellation before column j is removed, and so the number of digits that the loop loses.

Sources: Optimal Brain Surgeon (Hassibi & Stork 1993); ZipLM (Kurtic et al. 2023, arXiv 2302.04089), which removes
structures; DarwinLM (arXiv 2502.07780), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from darwinlm.runtime.errors import NumericsError
from darwinlm.steps.database.elimination import ROWS, eliminate
from darwinlm.steps.database.inverse import inverse_

Order = Callable[[Tensor, Tensor, Tensor, Tensor | None, str], Tensor]
"""Ranks the units of a module: from H, W, units, S (None without gradients) and the name of the module, to [n] int64,
where the unit that is removed first stands last."""

DEAD_LEVEL: Final = 2.0**-40
"""Diagonal of a dead input after `damp_`, as a share of the mean diagonal."""

DEAD_FLOOR: Final = 2.0**-80
"""Diagonal of every input after `damp_` if all are dead; its root and its inverse are exact in float32."""

DELAY: Final = 64
"""Columns removed between two applications of the pending updates."""

FLOAT32_MAX_INFLATION: Final = 500.0
"""Largest variance inflation factor for which the loop runs in float32.

Measured on decaying and low-rank spectra and on spectra with outliers (d = 768, damping 1e-1 to 1e-7, channels and
groups). The largest error of a cost is about 2e-7 times the inflation, 1e-4 at this limit; the median is below 1e-6.
The order first differs from float64 at ten times this value, where the error at any width changes by 3e-6; at 2e5 by
1e-2.
"""


@dataclass(frozen=True)
class RemovalOrder:
    """Units of one module, last removed first.

    Attributes:
        units: [n] int64, indices of units, last removed first: the first k are kept at level k.
        costs: [n] float64, increase of the squared output error by removing each unit, in units of E‖y‖² under the
            damped second moment (weighted by that of the gradients if given).
    """

    units: Int64[Tensor, " n"]
    costs: Float64[Tensor, " n"]


DAMPING = 0.01
"""Damping of a second moment as a share of its mean diagonal, as for GPTQ (arXiv 2210.17323). From 0.003 to 0.03, KL
rises by 0.02 (docs/notebook/database.md, "Calibration tokens or damping")."""


def damp_(H: Float[Tensor, "d d"], relative: float = DAMPING) -> Float[Tensor, "d d"]:
    """Add ``relative * mean(diag)`` to the diagonal of a second moment [d, d], in place; returns it.

    A dead input (diagonal exactly zero) is decoupled instead: its row and column are set to zero and its diagonal to
    `DEAD_LEVEL` times the mean diagonal (`DEAD_FLOOR` if every input is dead). The matrix stays invertible. The weights
    of a dead input don't change while it is kept, and removing it costs practically nothing.
    """
    dead = H.diagonal() == 0
    mean = H.diagonal().mean()
    H.diagonal().add_(relative * mean)
    if bool(dead.any()):
        H[dead] = 0
        H[:, dead] = 0
        level = torch.where(mean > 0, DEAD_LEVEL * mean, torch.full_like(mean, DEAD_FLOOR))
        H.diagonal()[dead] = level
    return H


@torch.no_grad()
def removal_order(
    H: Float[Tensor, "d d"],
    W: Float[Tensor, "r d"],
    units: Int[Tensor, "n u"],
    *,
    gradients: Float[Tensor, "r r"] | None = None,
    damping: float = DAMPING,
    name: str = "module",
) -> RemovalOrder:
    """Backward elimination of units: the cheapest is removed first, and the others compensate for it.

    The inverse is computed in float64. The loop runs in float32, or in float64 if the largest variance inflation factor
    exceeds `FLOAT32_MAX_INFLATION` or if float32 matrix products have reduced precision. Ties are broken by the lowest
    index, so dead inputs are removed first, by index, at no cost. Besides H and W, one float64 matrix [d, d] and a few
    rows are in memory (two matrices if the loop runs in float64).

    Args:
        H: [d, d] float32 or float64, E[x xᵀ] of the inputs, symmetric, not damped.
        W: [r, d] floating, output projection.
        units: [n, u] integer, columns of every unit; together each of 0..d-1 exactly once.
        gradients: [r, r] floating, second moment of the output gradients, which weights the output error; None is the
            identity.
        damping: Relative damping of H, see `damp_`.
        name: Name of the module, for messages.

    Raises:
        NumericsError: An input isn't finite, H isn't a second moment, or precision ran out.
    """
    columns = units.to(device=H.device, dtype=torch.int64).reshape(-1)
    A = ordered_moment(H, columns)
    for what, tensor in (("second moment", A), ("weight", W), ("second moment of the gradients", gradients)):
        if tensor is not None and not all(bool(torch.isfinite(rows).all()) for rows in torch.split(tensor, ROWS)):
            raise NumericsError(f"{name}: the {what} holds NaN or infinity; check the weights and the input text")
    if bool((A.diagonal() < 0).any()):
        raise NumericsError(f"{name}: the second moment of the inputs has a negative diagonal")
    dead = A.diagonal() == 0
    C, scale = _scaled_inverse_(damp_(A, damping), name)
    del A
    in_float32 = exact_products() and float(C.diagonal().max()) <= FLOAT32_MAX_INFLATION
    C, room = halves_(C) if in_float32 else (C, torch.empty_like(C))
    G, gain = _gram_(room, W.to(H.device), columns, scale.masked_fill_(dead, 0), gradients)
    picks, costs = eliminate(C, G, len(units), DELAY)
    costs *= gain
    if not bool(torch.isfinite(costs).all()):
        raise NumericsError(f"{name}: the removal order lost all precision; use more calibration text")
    return RemovalOrder(units=picks.flip(0), costs=costs.flip(0))


def least_error(
    H: Float[Tensor, "d d"],
    W: Float[Tensor, "r d"],
    units: Int[Tensor, "n u"],
    S: Float[Tensor, "r r"] | None,
    name: str,
) -> Int64[Tensor, " n"]:
    """Units of `removal_order`, [n] int64: the one whose removal adds least to the error is removed first."""
    return removal_order(H, W, units, gradients=S, name=name).units


@torch.no_grad()
def ordered_moment(H: Float[Tensor, "d d"], columns: Int64[Tensor, " d"]) -> Float64[Tensor, "d d"]:
    """Second moment in float64 with permuted rows and columns, without another copy.

    H is [d, d] floating; columns are [d] int64, every column once.
    """
    ordered = torch.empty(len(columns), len(columns), dtype=torch.float64, device=columns.device)
    for rows, places in zip(torch.split(H, ROWS), torch.split(columns.argsort(), ROWS), strict=True):
        ordered[places] = rows.index_select(1, columns).to(torch.float64)
    return ordered


def _scaled_inverse_(damped: Float64[Tensor, "d d"], name: str) -> tuple[Float64[Tensor, "d d"], Float64[Tensor, " d"]]:
    """Inverse of the damped second moment [d, d], float64, scaled to a diagonal of one; the moment is overwritten.

    Returns:
        [d, d] float64 inverse, contiguous, with the variance inflation factors on its diagonal, and [d] float64 scale,
        the square roots of the damped diagonal.

    Raises:
        NumericsError: The damped matrix isn't positive definite.
    """
    scale = damped.diagonal().sqrt()
    damped /= scale
    damped /= scale[:, None]
    factor = cholesky_(damped, name)
    return inverse_(factor).mT, scale  # symmetric; its columns are contiguous


def cholesky_(A: Float[Tensor, "d d"], name: str) -> Float[Tensor, "d d"]:
    """Lower Cholesky factor of a damped second moment [d, d] in its memory.

    LAPACK works on columns, which are the rows of the transpose here. Raises NumericsError if the matrix isn't positive
    definite, with the name of the module.
    """
    factor, info = A.mT, torch.empty((), dtype=torch.int32, device=A.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    if bool(info != 0):
        raise NumericsError(f"{name}: the damped second moment isn't positive definite; use more text")
    return factor


@torch.no_grad()
def halves_(A: Float64[Tensor, "d d"]) -> tuple[Float32[Tensor, "d d"], Float32[Tensor, "d d"]]:
    """A [d, d] matrix rounded to float32 in the first half of its memory, and the second half with any values.

    A is float64 and contiguous; both results are float32 and contiguous.
    """
    rounded, room = A.view(torch.float32).view(2, *A.shape)
    for rows, place in zip(torch.split(A, ROWS), torch.split(rounded, ROWS), strict=True):
        place.copy_(rows.float())  # never beyond the rows just read
    return rounded, room


def _gram_(
    room: Float[Tensor, "d d"],
    W: Float[Tensor, "r d"],
    columns: Int64[Tensor, " d"],
    scale: Float64[Tensor, " d"],
    S: Float[Tensor, "r r"] | None,
) -> tuple[Float[Tensor, "d d"], float]:
    """Vᵀ S V and a gain by which it is divided to avoid float32 under- and overflow; V is W permuted and scaled.

    Args:
        room: [d, d] float32 or float64, overwritten with the product.
        W: [r, d] floating.
        columns: [d] int64, order of its columns.
        scale: [d] float64, factors of the columns in that order.
        S: [r, r] floating; None is the identity.

    Returns:
        The product and the gain.
    """

    def scaled(rows: Tensor) -> Tensor:
        return rows.index_select(1, columns).to(torch.float64).mul_(scale)

    size = max(float(scaled(rows).abs().max()) for rows in torch.split(W, ROWS)) or 1.0
    if S is None:
        room.zero_()
        for rows in torch.split(W, ROWS):
            part = scaled(rows).div_(size).to(room.dtype)
            room.addmm_(part.T, part)
        return room, size**2
    V = torch.empty(W.shape, dtype=room.dtype, device=W.device)
    for rows, place in zip(torch.split(W, ROWS), torch.split(V, ROWS), strict=True):
        place.copy_(scaled(rows).div_(size))
    S = S.to(W.device, torch.float64, copy=True)
    weight = max(float(rows.abs().max()) for rows in torch.split(S, ROWS)) or 1.0
    torch.mm(V.T, S.div_(weight).to(room.dtype) @ V, out=room)
    return room, size**2 * weight


def exact_products() -> bool:
    """Whether float32 matrix products have float32 precision, by either of PyTorch's two settings."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by `fp32_precision`, which the older query doesn't support
        return torch.backends.cuda.matmul.fp32_precision not in ("tf32", "bf16")
