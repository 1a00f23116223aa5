"""KL divergence between next-token distributions, from logits, in float32: to measure, and to train with.

Letters: n tokens, v vocabulary. KL(dense ‖ candidate) = Σ_v p (log p - log q), in nats; DarwinLM §3 uses it as fitness.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

ROWS = 64
"""Maximum number of tokens that are compared at once."""

CPU_ELEMENTS = 1 << 20
"""Maximum number of float32 logits at once on a CPU, so that they stay in its caches."""


def log_probabilities(logits: Float[Tensor, "*n v"]) -> Float32[Tensor, "*n v"]:
    """Log-probabilities [n, v], float32, from logits [n, v]."""
    return torch.log_softmax(logits.float(), -1)


def summed_kl(logits: Float[Tensor, "*n v"], log_p: Float32[Tensor, "*n v"]) -> Float32[Tensor, ""]:
    """Sum over tokens of KL(p ‖ candidate), a float32 scalar that can be differentiated.

    From the candidate's logits [n, v] and `log_probabilities` of the dense model's.
    """
    return functional.kl_div(log_probabilities(logits), log_p, reduction="sum", log_target=True)


class DenseDistribution:
    """The dense model's distributions for some tokens, from logits [n, v], for comparison with many candidates.

    KL(p ‖ q) = Σ p log p - Σ p z + logsumexp(z) for a candidate's logits z, so p and its entropy are computed once.
    """

    def __init__(self, logits: Float[Tensor, "n v"]) -> None:
        self.probabilities = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        self.negative_entropy = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for start in range(0, len(logits), ROWS):
            piece = slice(start, start + ROWS)
            log_p = log_probabilities(logits[piece])
            p = torch.exp(log_p, out=self.probabilities[piece])
            self.negative_entropy[piece] = (p * log_p).sum(-1)

    def kl(
        self, logits: Float[Tensor, "n v"], normalisers: Float32[Tensor, " n"] | None = None
    ) -> Float32[Tensor, " n"]:
        """KL of each token, [n] float32, from logits [n, v] of the candidate.

        `normalisers` are their `log_normalisers`, [n], if already known.
        """
        divergence = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for row, z in _float_rows(logits):
            piece = slice(row, row + len(z))
            cross = torch.linalg.vecdot(self.probabilities[piece], z)
            total = _log_sum_exp_(z) if normalisers is None else normalisers[piece]
            divergence[piece] = self.negative_entropy[piece] - cross + total
        return divergence


def log_normalisers(logits: Float[Tensor, "n v"]) -> Float32[Tensor, " n"]:
    """Log of the sum of exponentials of each token's logits, [n, v] -> [n] float32."""
    normalisers = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    for row, z in _float_rows(logits):
        normalisers[row : row + len(z)] = _log_sum_exp_(z)
    return normalisers


def _float_rows(logits: Float[Tensor, "n v"]) -> Iterator[tuple[int, Float32[Tensor, "rows v"]]]:
    """Groups of rows in float32 with the index of their first row; all groups share the same memory."""
    size = ROWS
    if logits.device.type == "cpu":
        size = max(min(ROWS, CPU_ELEMENTS // max(logits.shape[-1], 1)), 1)
    room = torch.empty(min(size, len(logits)), logits.shape[-1], dtype=torch.float32, device=logits.device)
    for row in range(0, len(logits), size):
        part = logits[row : row + size]
        yield row, room[: len(part)].copy_(part)


def _log_sum_exp_(z: Float32[Tensor, "n v"]) -> Float32[Tensor, " n"]:
    """Log Σ_v exp(z) in float32, [n, v] -> [n]; z is overwritten."""
    largest = z.amax(dim=-1, keepdim=True)
    return z.sub_(largest).exp_().sum(dim=-1).log_().add_(largest[:, 0])


def token_losses(
    logits: Float[Tensor, "n v"], targets: Int64[Tensor, " n"], normalisers: Float32[Tensor, " n"] | None = None
) -> Float32[Tensor, " n"]:
    """Cross-entropy of each token, [n] float32, from logits [n, v] and the next tokens [n].

    `normalisers` are the `log_normalisers` of the logits, [n], if already known.
    """
    normalisers = log_normalisers(logits) if normalisers is None else normalisers
    return normalisers - logits.gather(-1, targets[:, None])[:, 0].float()
