"""Losses of recovery, from logits, in float32.

Letters: n tokens, v vocabulary, k of its entries. Distillation is the forward KL of Hinton et al. (arXiv 1503.02531) at
temperature 1, KL(softmax(z_dense) ‖ softmax(z)), in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from darwinlm.recipe import RecoverySettings


@dataclass(frozen=True)
class TopK:
    """The most likely tokens of the dense distributions.

    Attributes:
        log_p: [..., k] floating, their log-probabilities.
        places: [..., k] int64, their token ids.
        log_rest: [...] float32, logarithm of the total probability of all others.
    """

    log_p: Tensor
    places: Tensor
    log_rest: Tensor

    def __getitem__(self, rows: slice) -> TopK:
        return TopK(self.log_p[rows], self.places[rows], self.log_rest[rows])

    def flatten(self, first: int, last: int) -> TopK:
        """Join dimensions, as of a tensor."""
        return TopK(*(part.flatten(first, last) for part in (self.log_p, self.places, self.log_rest)))


def top_of(dense: Tensor, k: int) -> TopK:
    """The k most likely tokens, from logits [n, v] of the dense model."""
    log_p, places = torch.log_softmax(dense.float(), -1).topk(min(k, dense.shape[-1]), dim=-1)
    return TopK(log_p, places, _log_rest(log_p))


def forward_kl(logits: Tensor, dense: Tensor) -> Tensor:
    """Sum over tokens of KL(dense ‖ model), a float32 scalar, from logits of both, [n, v]."""
    log_q = torch.log_softmax(logits.float(), -1)
    log_p = torch.log_softmax(dense.float(), -1)
    return functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def top_k_kl(logits: Tensor, top: TopK) -> Tensor:
    """Sum over tokens of KL(dense ‖ model), a float32 scalar, from the k most likely tokens of the dense distribution.

    Logits are [n, v], the dense model's values [n, k]. All other tokens count as one token in both distributions. The
    result is at most the full KL, and equals it for k = v - 1.
    """
    log_q = torch.log_softmax(logits.float(), -1).gather(-1, top.places)
    log_p, log_rest = top.log_p.float(), top.log_rest.float()
    kept = (log_p.exp() * (log_p - log_q)).sum()
    total: Tensor = kept + (log_rest.exp() * (log_rest - _log_rest(log_q))).sum()
    return total


def _log_rest(log_part: Tensor) -> Tensor:
    """log(1 - Σ exp), finite even if the sum is 1."""
    return torch.log1p(-log_part.exp().sum(-1).clamp(max=1 - 1e-6))


def next_token_loss(logits: Tensor, following: Tensor) -> Tensor:
    """Summed cross-entropy, float32, from logits [n, v] and next tokens [n]; tokens of -1 are skipped."""
    return functional.cross_entropy(logits.float(), following, ignore_index=-1, reduction="sum")


def dense_kl(logits: Tensor, dense: Tensor | TopK) -> Tensor:
    """`forward_kl`, or `top_k_kl` if only the most likely tokens of the dense distributions are known."""
    return top_k_kl(logits, dense) if isinstance(dense, TopK) else forward_kl(logits, dense)


@dataclass(frozen=True)
class Loss:
    """A term of the training loss.

    Attributes:
        of: The sum over n tokens, a float32 scalar, from logits [n, v] and the dense model's, or, if the term is not
            `dense`, the next tokens [n], of which -1 is skipped. With `recovery.teacher_cache` the dense model's are a
            `TopK`.
        weight: Its weight; a term with 0 is not computed.
        dense: Whether it needs the dense model.
    """

    of: Callable[[Tensor, Any], Tensor]
    weight: Callable[[RecoverySettings], float]
    dense: bool = False


LOSSES = {
    "distillation": Loss(dense_kl, lambda settings: settings.distillation, dense=True),
    "next token": Loss(next_token_loss, lambda settings: 1 - settings.distillation),
}
"""All terms; the loss is their weighted sum."""


def weighted(settings: RecoverySettings) -> list[tuple[float, Loss]]:
    """The terms that the settings ask for, with their weights."""
    return [(weight, loss) for loss in LOSSES.values() if (weight := loss.weight(settings))]


def needs_dense(settings: RecoverySettings) -> bool:
    """Whether training needs the dense model."""
    return any(loss.dense for _, loss in weighted(settings))
