"""Fit the input projections of a sub-layer to the pre-activations of the dense model.

A kept row of such a projection equals the dense row w. Its pre-activation on the dense stream is w n, where n is the
stream after the sub-layer's norm. The smaller model has n' there. So each row w' minimises
E(w' n' - w n)² + λ ‖w' - w‖². The solution for every row is the same linear map: w' = w A with
A = (E[n n'ᵀ] + λ I)(E[n' n'ᵀ] + λ I)⁻¹. One ridge regression fits all projections of a sub-layer.

Letters: m residual width, b sequences, t tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darwinlm.calibration.moments import CrossMoment, SecondMoment
from darwinlm.families.family import Attention, Mlp
from darwinlm.surgery.ridge import ridge_solution


@dataclass(frozen=True)
class InputFit:
    """Result for one sub-layer.

    Attributes:
        weights: Weights of the projections into it, float32 by name inside the block.
        ridge: Best λ on validation text.
    """

    weights: dict[str, Tensor]
    ridge: float


@dataclass(frozen=True)
class InputMoments:
    """Moments of the input of a sub-layer's projections in both streams.

    Attributes:
        small: E[n' n'ᵀ], [m, m].
        cross: E[n n'ᵀ], [m, m].
        dense: E[n nᵀ], [m, m].
    """

    small: Tensor
    cross: Tensor
    dense: Tensor

    def error(self, G: Tensor, A: Tensor) -> float:
        """E‖W (A n' - n)‖² with G = Wᵀ W, relative to E‖W n‖²."""
        A64, G64 = A.double(), G.double()
        both = A64 @ self.small.double() @ A64.T - 2 * A64 @ self.cross.double().T + self.dense.double()
        energy = float((G64 * self.dense.double()).sum())
        return float((G64 * both).sum()) / energy if energy else 0.0


@torch.no_grad()
def input_moments(
    norm: nn.Module, dense: Iterable[Tensor], small: Iterable[Tensor], width: int, device: torch.device
) -> InputMoments:
    """Moments of two residual streams [b, t, m] before a sub-layer, after its norm."""
    of_small, of_dense = SecondMoment(width, device), SecondMoment(width, device)
    cross = CrossMoment(width, width, device)
    for theirs, ours in zip(dense, small, strict=True):
        n, small_input = norm(theirs), norm(ours)
        of_small.add(small_input)
        of_dense.add(n)
        cross.add(n, small_input)
    return InputMoments(of_small.take(), cross.mean(), of_dense.take())


def fit_inputs(
    part: Attention | Mlp,
    weights: Mapping[str, Tensor],
    seen: InputMoments,
    held_out: InputMoments,
    ridges: Sequence[float],
    label: str,
) -> InputFit | None:
    """The projections with the lowest pre-activation error on held-out text; None if the given ones are best.

    Args:
        part: Names of the projections.
        weights: The block's weights, float32 by name inside it.
        seen: Moments on the fitted text.
        held_out: Moments on validation text.
        ridges: Candidate values of λ.
        label: Name of the sub-layer, for messages.

    Raises:
        NumericsError: Moments aren't finite or can't be factorised.
    """
    device = seen.small.device
    names = [f"{part.name}.{projection}.weight" for projection in part.segments]
    given = {name: weights[name].to(device) for name in names}
    stacked = torch.cat(list(given.values())).double()
    G = stacked.T @ stacked
    identity = torch.eye(len(G), device=device)
    best, least = None, held_out.error(G, identity)
    for ridge in ridges:
        A = ridge_solution(seen.small, seen.cross, identity, ridge, name=label)
        error = held_out.error(G, A)
        if error < least:
            best, least = (A, ridge), error
    if best is None:
        return None
    A, ridge = best
    return InputFit({name: W @ A for name, W in given.items()}, ridge)
