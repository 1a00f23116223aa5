"""A loss that is a sum over tokens, with gradients computed during the forward pass.

The logits of a piece are released before those of the next piece are computed. Autograd would either keep all of them
until the backward pass, or compute them a second time, which is a quarter of the cost of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.utils.checkpoint import checkpoint

LossOf = Callable[[slice, Tensor], Tensor]

HEAD_TOKENS = 128
"""Tokens whose logits and gradients are in memory at once, where weights aren't trained."""


def chunked_loss(
    loss_of: LossOf, hidden: Tensor, weights: Sequence[Tensor], chunk: int, *, again: bool = False
) -> Tensor:
    """Sum of a loss over pieces of tokens, which can be differentiated once with respect to `hidden` and `weights`.

    Args:
        loss_of: Scalar loss of some tokens, from their rows of `hidden`. It may use `weights` but no other trained
            tensors.
        hidden: [n, m], a row for each token.
        weights: Trained leaf tensors that `loss_of` uses.
        chunk: Tokens in a piece.
        again: Whether to compute each piece again in the backward pass, and differentiate it only there. FSDP needs
            this, because it reshards all weights after any backward pass.

    Returns:
        A scalar, float32.
    """
    if again or not torch.is_grad_enabled():
        total = hidden.new_zeros((), dtype=torch.float32)
        for piece in _pieces(len(hidden), chunk):
            if torch.is_grad_enabled():
                total = total + checkpoint(loss_of, piece, hidden[piece], use_reentrant=False)
            else:
                total += loss_of(piece, hidden[piece])
        return total
    apply: Callable[..., Tensor] = _GradientsOnTheWay.apply  # untyped in some releases of torch
    return apply(loss_of, chunk, hidden, *weights)


def chunked_gradient(loss_of: LossOf, hidden: Tensor) -> Tensor:
    """Gradient of a sum over tokens at `hidden`, [..., m], from the loss of pieces of its rows [n, m]."""
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(chunked_loss(loss_of, hidden.flatten(0, -2), (), HEAD_TOKENS), hidden)
    return gradient


def next_tokens(tokens: Tensor) -> Tensor:
    """Next token of each of tokens [b, t], [b·t]; -1 at the end of a sequence, and before an item (`items.py`)."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1).flatten().clamp(min=-1)


def _pieces(count: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


class _GradientsOnTheWay(torch.autograd.Function):
    """Computes the gradients of every piece in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: FunctionCtx, loss_of: LossOf, chunk: int, hidden: Tensor, *weights: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        summed: list[Tensor] = []
        for piece in _pieces(len(hidden), chunk):
            with torch.enable_grad():
                rows = hidden[piece].detach().requires_grad_()
                loss = loss_of(piece, rows)
            # The inner backward pass must use the types that autocast chose in the forward pass.
            with torch.autocast(hidden.device.type, enabled=False):
                gradient[piece], *gradients = torch.autograd.grad(loss, (rows, *weights))
            if summed:
                for total_gradient, piece_gradient in zip(summed, gradients, strict=True):
                    total_gradient.add_(piece_gradient)
            else:
                summed = list(gradients)
            total += loss.detach()
        ctx.save_for_backward(gradient, *summed)
        return total

    @staticmethod
    def backward(ctx: BackwardCFunction, *factors: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = factors  # the gradient of the sum
        return (None, None, *(gradient * factor for gradient in ctx.saved_tensors))
