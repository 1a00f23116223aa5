"""Formulas of the losses of recovery, from logits, in float32.

Letters: n tokens, v vocabulary. Distillation is the forward KL of Hinton et al. (arXiv 1503.02531) at
temperature 1, KL(softmax(z_dense) ‖ softmax(z)), in nats per token.
"""

from __future__ import annotations

from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from darwinlm.model.divergence import log_probabilities, summed_kl


def forward_kl(logits: Float[Tensor, "n v"], dense: Float[Tensor, "n v"]) -> Float32[Tensor, ""]:
    """Sum over tokens of KL(dense ‖ model), a float32 scalar, from logits of both, [n, v]."""
    return summed_kl(logits, log_probabilities(dense))


def next_token_loss(logits: Float[Tensor, "n v"], following: Int64[Tensor, " n"]) -> Float32[Tensor, ""]:
    """Summed cross-entropy, float32, from logits [n, v] and next tokens [n]; tokens of -1 are skipped."""
    return functional.cross_entropy(logits.float(), following, ignore_index=-1, reduction="sum")
