"""A loss that is a sum over rows, with its gradients taken on the way there.

Every piece's logits are made, used and let go of before the next one's. Left to autograd they would either all exist
until the way back, or be made a second time there, which is a quarter of what the head costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LossOf = Callable[[slice, Tensor], Tensor]


def chunked_loss(
    loss_of: LossOf, hidden: Tensor, weights: Sequence[Tensor], chunk: int, *, again: bool = False
) -> Tensor:
    """Sum of a loss over pieces of rows, which can be differentiated once with respect to `hidden` and `weights`.

    Args:
        loss_of: The loss, a scalar, of some rows, from those rows of `hidden`. It may use `weights`, and nothing else
            that is to be trained.
        hidden: [n, m] rows.
        weights: Leaves that `loss_of` uses and that are trained.
        chunk: Rows in a piece.
        again: Make each piece a second time on the way back, and differentiate it only there. That is for FSDP, which
            takes the end of any backward pass for the end of the whole model's and deals the weights out again.

    Returns:
        A scalar, float32.
    """
    if again or not torch.is_grad_enabled():
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows in _pieces(len(hidden), chunk):
            if torch.is_grad_enabled():
                total = total + checkpoint(loss_of, rows, hidden[rows], use_reentrant=False)
            else:
                total += loss_of(rows, hidden[rows])
        return total
    apply: Any = _GradientsOnTheWay.apply  # without types in some releases of torch
    result: Tensor = apply(loss_of, chunk, hidden, *weights)
    return result


def _pieces(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


class _GradientsOnTheWay(torch.autograd.Function):
    """The forward pass does the backward pass of every piece; what is left for later is a factor."""

    @staticmethod
    def forward(ctx: Any, loss_of: LossOf, chunk: int, hidden: Tensor, *weights: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        summed: list[Tensor] = []
        for rows in _pieces(len(hidden), chunk):
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_()
                loss = loss_of(rows, part)
            # What autocast chose for the way there is not to be chosen anew for the way back.
            with torch.autocast(hidden.device.type, enabled=False):
                gradient[rows], *found = torch.autograd.grad(loss, (part, *weights))
            for kept, new in zip(summed, found, strict=False):
                kept.add_(new)
            summed = summed or list(found)
            total += loss.detach()
        ctx.save_for_backward(gradient, *summed)
        return total

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        (factor,) = factors
        return (None, None, *(saved * factor for saved in ctx.saved_tensors))
