"""Inverse of a matrix from its Cholesky factor, in the factor's memory, as matrix products that leave out all zeros.

With H = L Lᵀ and X = L⁻¹, the inverse is Xᵀ X. Both X and the product are computed by blocks of rows::

    X_ij = -L_ii⁻¹ (L_i,j..i-1 X_j..i-1,j)        (Xᵀ X)_ij = Σ_{k >= i} X_kiᵀ X_kj,   j <= i

This takes 2/3 d³ operations, as LAPACK's `potri`, which `torch.cholesky_inverse` calls on a CPU. On CUDA, that solves
against the identity, which takes 2 d³ and another matrix.

Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 14.2, method 1B.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

PANEL: Final = 512
"""Rows and columns of a block."""


@torch.no_grad()
def inverse_(factor: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Inverse of H = L Lᵀ, [d, d], written over its Cholesky factor L, of which only the lower triangle is read.

    Needs PANEL rows of further memory, twice.
    """
    d, L = len(factor), factor
    for at in range(0, d, PANEL):
        end = min(at + PANEL, d)
        diagonal = L[at:end, at:end]
        for left in range(0, at, PANEL):
            L[at:end, left : left + PANEL] = L[at:end, left:at] @ L[left:at, left : left + PANEL]
        if at:
            L[at:end, :at] = torch.linalg.solve_triangular(diagonal, L[at:end, :at], upper=False).neg_()
        eye = torch.eye(end - at, dtype=L.dtype, device=L.device)
        diagonal.copy_(torch.linalg.solve_triangular(diagonal, eye, upper=False))
    for at in range(0, d, PANEL):
        end = min(at + PANEL, d)
        L[at:end, :end] = L[at:, at:end].mT @ L[at:, :end]
        L[:at, at:end] = L[at:end, :at].mT
        diagonal = L[at:end, at:end]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).mT)  # products aren't symmetric to the last bit
    return L
