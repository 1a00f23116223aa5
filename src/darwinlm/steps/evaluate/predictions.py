"""Predictions of a model and of the dense model for the same tokens, from which metrics of tokens are computed.

Letters: n tokens, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from darwinlm.model.divergence import DenseDistribution, log_normalisers, token_losses


class DensePredictions:
    """The dense model's predictions, kept while other models are compared with them.

    Attributes:
        distribution: Its probabilities [n, v] and their negative entropies [n].
        most_likely: Token that it ranks first, [n] int64.
    """

    def __init__(self, logits: Tensor) -> None:
        self.distribution = DenseDistribution(logits)
        self.most_likely = logits.argmax(-1)


@dataclass(frozen=True)
class Predictions:
    """A model's predictions, from its logits [n, v]. What several metrics need is computed once.

    Attributes:
        dense: The dense model's.
        following: Next tokens, [n] int64.
    """

    dense: DensePredictions
    logits: Tensor
    following: Tensor

    @cached_property
    def normalisers(self) -> Tensor:
        """Logs of the sums of exponentials of the logits, [n] float32."""
        return log_normalisers(self.logits)

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropies of the next tokens in nats, [n] float32."""
        return token_losses(self.logits, self.following, self.normalisers)

    @cached_property
    def divergences(self) -> Tensor:
        """KL(dense ‖ model) in nats, [n] float32."""
        return self.dense.distribution.kl(self.logits, normalisers=self.normalisers)

    @cached_property
    def most_likely(self) -> Tensor:
        """Token that the model ranks first, [n] int64."""
        return self.logits.argmax(-1)
