"""Language models: the distribution of the next token is kept, by KL(dense ‖ model) in nats per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from darwinlm.model.divergence import DenseDistribution, log_probabilities, summed_kl
from darwinlm.model.objective.expected_rows import ExpectedRows, LinearHead
from darwinlm.model.objective.objective import Objective, Reference, Window
from darwinlm.model.walk.chunks import LossOf, chunked_gradient, chunked_loss, next_tokens
from darwinlm.model.walk.decoder import LOGIT_TOKENS, Decoder
from darwinlm.runtime.compute import exact


class DenseTokens(Reference):
    """The dense model's distributions, as expected rows of its head where logits are a linear function of its input."""

    def __init__(self, decoder: Decoder, streams: Sequence[Tensor]) -> None:
        super().__init__(decoder, streams)
        head = LinearHead.of(decoder)
        self._sides = [ExpectedRows(decoder, head, stream.flatten(0, 1)) for stream in streams] if head else []

    def losses(self, piece: Window, ends: Sequence[Tensor]) -> Tensor:
        """See `Reference.losses`."""
        length = self.dense.shape[1]
        if self._sides:
            side, start = self._sides[piece[0] // self.batch_sequences], piece[0] % self.batch_sequences
            divergence = torch.stack([side.kl(end.flatten(0, 1), start * length) for end in ends])
        else:
            divergence = self._from_logits(piece, ends)
        return exact(divergence).view(len(ends), -1, length).sum(2, dtype=torch.float64)

    def gradient(self, piece: Window, hidden: Tensor) -> Tensor:
        """See `Reference.gradient`."""
        dense = self.dense[slice(*piece)]
        return chunked_gradient(kl_of_pieces(self.decoder, dense.flatten(0, 1)), hidden)

    def _from_logits(self, piece: Window, ends: Sequence[Tensor]) -> Tensor:
        """KL of each token, [candidates, n], from logits that are no linear function of the head's input."""
        size = self.decoder.head_tokens
        dense, *candidates = (torch.split(end.flatten(0, 1), size) for end in (self.dense[slice(*piece)], *ends))
        divergences: list[list[Tensor]] = []
        for number, part in enumerate(dense):
            of_part = DenseDistribution(self.decoder.head(part))
            divergences.append([of_part.kl(self.decoder.head(parts[number])) for parts in candidates])
        return torch.stack([torch.cat(parts) for parts in zip(*divergences, strict=True)])


class NextTokens(Objective):
    """The distribution of the next token."""

    name: ClassVar[str] = "next_token"
    unit: ClassVar[str] = "nats per token"
    compared_at: ClassVar[str] = "tokens"
    reads: ClassVar[bool] = False

    def words(self) -> str:
        """See `Objective.words`."""
        return "the distribution of the next token"

    def counts(self, tokens: Tensor) -> Tensor:
        """Every token counts."""
        return torch.full((len(tokens),), tokens.shape[1])

    def sensitivity(self, decoder: Decoder, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Gradient of the summed cross-entropy of the text's own next tokens (empirical Fisher)."""
        following = next_tokens(tokens).to(hidden.device)

        def loss(piece: slice, part: Tensor) -> Tensor:
            logits = decoder.head(part).float()
            return nn.functional.cross_entropy(logits, following[piece], ignore_index=-1, reduction="sum")

        return chunked_gradient(loss, hidden)

    def reference(self, decoder: Decoder, streams: Sequence[Tensor], texts: Sequence[Tensor]) -> DenseTokens:
        """See `Objective.reference`."""
        del texts
        return DenseTokens(decoder, streams)

    def loss(self, decoder: Decoder, hidden: Tensor, dense: Tensor, tokens: Tensor) -> Tensor:
        """See `Objective.loss`."""
        del tokens
        of_pieces = kl_of_pieces(decoder, dense.flatten(0, 1))
        return chunked_loss(of_pieces, hidden.flatten(0, 1), (), LOGIT_TOKENS)

    def compared(
        self, dense: Decoder, other: Decoder, streams: tuple[Tensor, Tensor], tokens: Tensor
    ) -> Iterator[tuple[float, int]]:
        """See `Objective.compared`."""
        del tokens
        pieces = (torch.split(hidden.flatten(0, 1), dense.head_tokens) for hidden in streams)
        for states, others in zip(*pieces, strict=True):
            divergence = DenseDistribution(dense.head(states)).kl(other.head(others))
            yield float(exact(divergence).sum(dtype=torch.float64)), len(divergence)


LANGUAGE = NextTokens()


def kl_of_pieces(decoder: Decoder, dense: Tensor) -> LossOf:
    """Summed KL(dense ‖ model) of pieces of tokens, from both streams after the last block, [n, m]."""

    def loss(piece: slice, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            expected = log_probabilities(decoder.head(dense[piece]))
        return summed_kl(decoder.head(hidden), expected)

    return loss
