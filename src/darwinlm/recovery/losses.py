"""Losses of recovery, from logits, in float32.

Letters: n tokens, v vocabulary, k of it. Distillation is the forward KL of Hinton et al. (arXiv 1503.02531),
T² · KL(softmax(z_dense / T) ‖ softmax(z / T)), in nats per token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def forward_kl(logits: Tensor, dense: Tensor, *, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """Sum over tokens of T² · KL(dense ‖ model).

    With `top_k` the dense distribution is known at its k likeliest tokens only; what is left of it, and of the model's,
    counts as one further token. That is never more than the full KL, and equals it for k = v - 1.

    Args:
        logits: [n, v] of the model.
        dense: [n, v] of the dense model.
        temperature: T.
        top_k: k; None compares the whole distributions.

    Returns:
        A scalar, float32.
    """
    log_q = torch.log_softmax(logits.float() / temperature, dim=-1)
    log_p = torch.log_softmax(dense.float() / temperature, dim=-1)
    if top_k is None or top_k >= log_p.shape[-1]:
        divergence = functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return divergence * temperature**2
    log_p, places = log_p.topk(top_k, dim=-1)
    log_q = log_q.gather(-1, places)
    kept = (log_p.exp() * (log_p - log_q)).sum()
    rest_p, rest_q = (_log_rest(part) for part in (log_p, log_q))
    return (kept + (rest_p.exp() * (rest_p - rest_q)).sum()) * temperature**2


def _log_rest(log_part: Tensor) -> Tensor:
    """log(1 - Σ exp), finite even where nothing is left."""
    return torch.log1p(-log_part.exp().sum(-1).clamp(max=1 - 1e-6))


def next_token_loss(logits: Tensor, following: Tensor) -> Tensor:
    """Sum over tokens of the cross-entropy, float32, from logits [n, v] and the next tokens, [n]; -1 is left out."""
    return functional.cross_entropy(logits.float(), following, ignore_index=-1, reduction="sum")


def hidden_loss(hidden: Tensor, dense: Tensor) -> Tensor:
    """Mean over tokens of ‖h - h_dense‖² / ‖h_dense‖² of residual streams [..., m], float32."""
    difference = (hidden.float() - dense.float()).square().sum(-1)
    return (difference / dense.float().square().sum(-1).clamp_min(1e-12)).mean()
