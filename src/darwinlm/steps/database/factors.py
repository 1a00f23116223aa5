"""One factorisation that gives the optimal weights and the error at every width.

Letters used below::

    r    outputs: rows of W                        d    inputs: columns of W, rows and columns of H
    π    [p] the columns that may be kept, last removed first; p = d unless some are already removed
    k    how many of π are kept, 0..p              H    E[x xᵀ], damped
    L    [p, p] lower triangular, H_ππ = L Lᵀ

With the first k columns of π, the squared output error ``tr((W - W_k) H (W - W_k)ᵀ)`` is minimal for the weights
``(W H)_k H_kk⁻¹``. The leading block of L is the factor of the leading block of H_ππ, so one matrix serves all k::

    T = (W H)_π L⁻ᵀ
    weights of width k:   T[:, :k] L[:k, :k]⁻¹
    error of width k:     tr(W H Wᵀ) - Σ_{j < k} ‖T[:, j]‖²

If π has every column, no error remains at the largest width; then T is ``W_π L`` and needn't be stored. L and T of any
other π aren't stored either: the L of all columns determines H, and they follow.

With the second moment S of the output gradients, half of the error weighted by S,

    tr(S (W - W_k) H (W - W_k)ᵀ) / 2,

is the second-order estimate of KL(dense ‖ pruned) in nats per token. KL has no slope at the dense model. Its curvature
there is the second moment of the gradients (Fisher), assumed independent of the inputs as in K-FAC (Martens & Grosse
2015, arXiv 1503.05671).

Removing columns one by one gives the same weights and losses (Optimal Brain Surgeon, Hassibi & Stork 1993; ZipLM,
Kurtic et al. 2023, arXiv 2302.04089; DarwinLM, arXiv 2502.07780, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from darwinlm.runtime.errors import NumericsError
from darwinlm.steps.database.elimination import ROWS
from darwinlm.steps.database.order import cholesky_, halves_

COLUMNS = 1024
"""Columns of a target in one product: few enough to leave out most zeros of L. Our choice."""

LEAST_ENERGY = 1e-30
"""Smallest allowed energy of a module's outputs; the largest is its inverse."""


@dataclass(frozen=True)
class NestedFactors:
    """All widths of one linear map.

    Attributes:
        columns: [p] int64, the columns that may be kept, last removed first.
        factor: [p, p], lower triangular L with H_ππ = L Lᵀ; float32, or float64 where errors are computed from it.
        target: [r, p] of the same type, T = (W H)_π L⁻ᵀ.
    """

    columns: Int64[Tensor, " p"]
    factor: Float[Tensor, "p p"]
    target: Float[Tensor, "r p"]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.columns.nbytes + self.factor.nbytes + self.target.nbytes


def _remaining(squares: Float[Tensor, " p"]) -> Float[Tensor, " p+1"]:
    """Sums of squares [p] over all columns but the first k, [p + 1]."""
    return torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])


def _weighted_squares(T: Float[Tensor, "r p"], S: Float[Tensor, "r r"]) -> Float64[Tensor, " p"]:
    """t_jᵀ S t_j of every column, float64."""
    squares: Tensor = torch.linalg.vecdot(S.to(T) @ T, T, dim=0)
    return squares.double()


def _losses(squares: Float64[Tensor, " p"], energy: Float64[Tensor, ""]) -> Float64[Tensor, " p+1"]:
    recovered = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    return (energy - recovered).clamp_(min=0) / 2


@torch.no_grad()
def whole_factor_(
    A: Float64[Tensor, "d d"],
    W: Float[Tensor, "r d"],
    columns: Int64[Tensor, " d"],
    S: Float[Tensor, "r r"] | None = None,
    *,
    name: str = "module",
) -> tuple[Float32[Tensor, " d*(d+1)//2"], Float64[Tensor, " d+1"], Float64[Tensor, " d+1"] | None]:
    """Factorise once for all widths, in float64 and little memory.

    Args:
        A: [d, d] float64, damped second moment with rows and columns in the order of `columns`; overwritten.
        W: [r, d] floating, output projection of the dense module.
        columns: [d] int64, every column once, last removed first.
        S: [r, r] floating, second moment of the gradient of the summed loss at the output, per token.
        name: Name of the module, for messages.

    Returns:
        [d (d + 1) / 2] float32, L as `pack_lower` writes it, in the memory of A (on a CPU); the squared output error of
        keeping the first k columns, k = 0..d, [d + 1] float64, in units of E‖y‖² under the damped second moment, which
        never increases with k; and with S the KL to the dense model at every width, to second order, [d + 1] float64 in
        nats per token.

    Raises:
        NumericsError: A isn't positive definite.
    """
    L = cholesky_(A, name)
    energies = L.new_zeros(len(L))
    for rows in torch.split(W, ROWS):
        ordered = rows.index_select(1, columns).to(L)
        for at in range(0, len(L), COLUMNS):
            energies[at : at + COLUMNS] += (ordered[:, at:] @ L[at:, at : at + COLUMNS]).square_().sum(0)
    losses = None
    if S is not None:
        ordered = W.index_select(1, columns).to(L.device, torch.float32)
        starts = range(0, len(L), ROWS)
        parts = [_weighted_squares(ordered[:, at:] @ L[at:, at : at + ROWS].float(), S) for at in starts]
        squares = torch.cat(parts)
        losses = _losses(squares, squares.sum())
        del ordered
    # L is stored column by column.
    transposed, room = halves_(L.mT.contiguous())
    return pack_lower(transposed.mT, room.view(-1)), _remaining(energies), losses


def check_energy(energy: float, name: str) -> None:
    """Refuse outputs whose squares exceed the range of float32, since the order and the errors would be noise.

    The energy is tr(W H Wᵀ); 0 is allowed (a module without output). Raises NumericsError, with the name of the module.
    """
    if energy != 0 and not LEAST_ENERGY <= energy <= 1 / LEAST_ENERGY:
        raise NumericsError(
            f"{name}: the energy of its outputs is {energy:.1g}, outside {LEAST_ENERGY:g} to {1 / LEAST_ENERGY:g}, "
            "where float32 can tell columns apart: scale its weights, or set them to zero"
        )


@torch.no_grad()
def full_target(
    factor: Float32[Tensor, "d d"], W: Float[Tensor, "r d"], columns: Int[Tensor, " d"]
) -> Float32[Tensor, "r d"]:
    """Target T = W_π L of a module with every column, [r, d] float32, recomputed from its weights.

    L is [d, d] float32, lower triangular; W [r, d] floating, π [d] integer.
    """
    ordered = W.to(factor.device).index_select(1, columns.to(factor.device, torch.int64)).float()
    target = torch.empty_like(ordered)
    for at in range(0, len(factor), COLUMNS):
        target[:, at : at + COLUMNS] = ordered[:, at:] @ factor[at:, at : at + COLUMNS]
    return target


@torch.no_grad()
def narrower_factors(whole: NestedFactors, columns: Int[Tensor, " p"]) -> NestedFactors:
    """Factors over some of the columns, or in another order, from those over all of them, which determine H.

    The rows of L of these columns are Rᵀ Qᵀ, so Rᵀ is their factor and T Q their target. No product is squared, so
    float32 is enough for weights.

    Args:
        whole: Factors over every column.
        columns: [p] integer, distinct, last removed first.
    """
    columns, every = columns.to(whole.columns), whole.columns
    place = torch.empty_like(every)
    place[every] = torch.arange(len(place), device=place.device)
    Q, R = torch.linalg.qr(whole.factor.index_select(0, place[columns]).T)
    signs = R.diagonal().sign()
    return NestedFactors(columns, R.T * signs, whole.target @ Q * signs)


@torch.no_grad()
def narrower_errors(
    whole: Float64[Tensor, "r d"], target: Float64[Tensor, "r p"], S: Float[Tensor, "r r"] | None = None
) -> tuple[Float64[Tensor, " p+1"], Float64[Tensor, " p+1"] | None]:
    """Errors and losses of `whole_factor_`, [p + 1], for factors over p columns with this target, [r, p] float64.

    `whole` is the target over all columns, [r, d] float64.
    """
    squares = target.square().sum(0)
    errors = _remaining(squares) + (whole.square().sum() - squares.sum()).clamp(min=0)
    losses = None if S is None else _losses(_weighted_squares(target, S), _weighted_squares(whole, S).sum())
    return errors, losses


@torch.no_grad()
def kept_weights(factors: NestedFactors, k: int) -> Float[Tensor, "r {k}"]:
    """Optimal weights on the first k of p columns, T[:, :k] L[:k, :k]⁻¹: [r, k], in their order."""
    factor, target = factors.factor[:k, :k].contiguous(), factors.target[:, :k].contiguous()  # else LAPACK is slower
    weights: Tensor = torch.linalg.solve_triangular(factor, target, upper=False, left=False)
    return weights


def pack_lower(L: Float[Tensor, "p p"], room: Float32[Tensor, " room"] | None = None) -> Float32[Tensor, " p*(p+1)//2"]:
    """Lower triangle of L, [p, p] floating, by rows, so that the first k(k+1)/2 entries are the leading k x k block.

    Returns [p (p + 1) / 2] float32, in `room`, float32 memory for at least as many entries, or else in new memory.
    """
    d = len(L)
    packed = L.new_empty(d * (d + 1) // 2, dtype=torch.float32) if room is None else room[: d * (d + 1) // 2]
    for top in range(0, d, ROWS):
        end = min(top + ROWS, d)
        rows, columns = torch.tril_indices(end - top, end, offset=top, device=L.device)
        packed[top * (top + 1) // 2 : end * (end + 1) // 2] = L[top:end][rows, columns]
    return packed


def unpack_lower(packed: Float[Tensor, " packed"], d: int) -> Float[Tensor, "{d} {d}"]:
    """Lower triangular matrix [d, d], zero above the diagonal, from its packed rows, in their type."""
    L = packed.new_empty(d, d)
    across = torch.arange(d, device=packed.device)
    for top in range(0, d, ROWS):
        end = min(top + ROWS, d)
        down = torch.arange(top, end, device=packed.device)
        # Entries above the diagonal are read from the rows below, and zeroed.
        place = ((down * (down + 1)).div_(2, rounding_mode="floor")[:, None] + across[:end]).clamp_(max=len(packed) - 1)
        L[top:end, :end] = packed[place].tril_(diagonal=top)
        L[top:end, end:] = 0
    return L
