"""Losses of recovery, from logits, in float32.

Letters: n tokens, v vocabulary. Distillation is the forward KL of Hinton et al. (arXiv 1503.02531) at
temperature 1, KL(softmax(z_dense) ‖ softmax(z)), in nats per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from darwinlm.model.divergence import log_probabilities, summed_kl

if TYPE_CHECKING:
    from darwinlm.steps.recover.step import RecoverySettings


def forward_kl(logits: Tensor, dense: Tensor) -> Tensor:
    """Sum over tokens of KL(dense ‖ model), a float32 scalar, from logits of both, [n, v]."""
    return summed_kl(logits, log_probabilities(dense))


def next_token_loss(logits: Tensor, following: Tensor) -> Tensor:
    """Summed cross-entropy, float32, from logits [n, v] and next tokens [n]; tokens of -1 are skipped."""
    return functional.cross_entropy(logits.float(), following, ignore_index=-1, reduction="sum")


@dataclass(frozen=True)
class Loss:
    """A term of the training loss.

    Attributes:
        of: The sum over n tokens, a float32 scalar, from logits [n, v] and the dense model's, or, if the term is not
            `dense`, the next tokens [n], of which -1 is skipped.
        weight: Its weight; a term with 0 is not computed.
        dense: Whether it needs the dense model.
    """

    of: Callable[[Tensor, Any], Tensor]
    weight: Callable[[RecoverySettings], float]
    dense: bool = False


LOSSES = {
    "distillation": Loss(forward_kl, lambda settings: settings.distillation, dense=True),
    "next token": Loss(next_token_loss, lambda settings: 1 - settings.distillation),
}
"""All terms; the loss is their weighted sum."""


def weighted(settings: RecoverySettings) -> list[tuple[float, Loss]]:
    """The terms that the settings ask for, with their weights."""
    return [(weight, loss) for loss in LOSSES.values() if (weight := loss.weight(settings))]


def needs_dense(settings: RecoverySettings) -> bool:
    """Whether training needs the dense model."""
    return any(loss.dense for _, loss in weighted(settings))
