"""Models that read texts one by one and give something for each: what scores and embeddings have in common.

Letters: b sequences, t tokens in each, m residual width, i texts, c outputs of each, k texts of a bank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from darwinlm.model.objective.distances import text_keys
from darwinlm.model.objective.objective import Objective, Reference, Window
from darwinlm.model.walk import items
from darwinlm.model.walk.decoder import Decoder
from darwinlm.runtime.compute import exact

Pooling = Literal["lasttoken", "mean", "cls"]
"""Which tokens of a text its outputs come from: the last one, all, or the first one."""
ROWS = 128
"""Most rows of which the head is computed at once."""
BANK = 256
"""Most texts of the dense model whose similarities to a text are compared."""


@dataclass(frozen=True)
class Bank:
    """Outputs of the dense model for texts that others are compared with.

    Attributes:
        outputs: Its outputs, [k, c].
        offset: Number of the first of the compared texts in the bank; those beyond its end aren't in it.
    """

    outputs: Tensor
    offset: int = 0

    def same(self, count: int) -> Tensor:
        """Which text of the bank is each of `count` texts, [count, k] bool."""
        numbers = torch.arange(self.offset, self.offset + count, device=self.outputs.device)
        return numbers[:, None] == torch.arange(len(self.outputs), device=self.outputs.device)


@dataclass(frozen=True)
class ItemObjective(Objective):
    """Something for each text.

    Attributes:
        pooling: Which tokens it comes from.
        padding: Token that the model's class skips at the end of a text; None if it skips none.
    """

    pooling: Pooling = "lasttoken"
    padding: int | None = None

    compared_at: ClassVar[str] = "texts"

    @abstractmethod
    def distance(self, outputs: Tensor, dense: Tensor, bank: Bank) -> Tensor:
        """Distance of the outputs [i, c] of a model to those of the dense one, [i]; float32."""

    @abstractmethod
    def probe(self, outputs: Tensor, keys: Tensor) -> Tensor:
        """A probe of the distance's curvature at the dense model's outputs [i, c], [i]; keys are hashes of texts."""

    def chosen(self, outputs: Tensor) -> Tensor:
        """The outputs that are compared, of those of the model's head, [n, ·] -> [n, c]."""
        return outputs

    def counts(self, tokens: Tensor) -> Tensor:
        """Number of complete texts."""
        return items.counts(tokens)

    def outputs(self, head: Callable[[Tensor], Tensor], states: Tensor, tokens: Tensor) -> Tensor:
        """What a model gives for the texts in sequences, [i, c] float32.

        From states [b, t, m] of their tokens [b, t]; `head` gives the model's outputs for rows of them, [n, m].
        """
        at = items.places(tokens.to(states.device))
        if self.pooling == "mean":
            flat = torch.cat([self.chosen(head(part)).float() for part in torch.split(states.flatten(0, 1), ROWS)])
            sums = torch.nn.functional.pad(flat.view(*states.shape[:2], -1).cumsum(1), (0, 0, 1, 0))
            length = (at.last - at.first + 1)[:, None]
            return (sums[at.sequence, at.last + 1] - sums[at.sequence, at.first]) / length
        rows = states[at.sequence, at.first if self.pooling == "cls" else self._last(at, tokens)]
        return torch.cat([self.chosen(head(part)).float() for part in torch.split(rows, ROWS)])

    def _last(self, at: items.Places, tokens: Tensor) -> Tensor:
        """The last token of each text, as the model's class finds it: the last one that isn't padding."""
        if self.padding is None:
            return at.last
        present = items.ids(tokens).to(at.last.device) != self.padding
        places = torch.arange(tokens.shape[1], device=at.last.device)
        latest = torch.where(present, places, -1).cummax(1).values
        return torch.maximum(latest[at.sequence, at.last], at.first)

    def sensitivity(self, decoder: Decoder, hidden: Tensor, tokens: Tensor) -> Tensor:
        """See `Objective.sensitivity`."""
        at = items.places(tokens)
        keys = text_keys(items.ids(tokens), at.sequence, at.first, at.last).to(hidden.device)
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            total = self.probe(self.outputs(decoder.head, hidden, tokens), keys).sum()
            (gradient,) = torch.autograd.grad(total, hidden)
        return gradient

    def reference(self, decoder: Decoder, streams: Sequence[Tensor], texts: Sequence[Tensor]) -> DenseItems:
        """See `Objective.reference`."""
        return DenseItems(self, decoder, streams, texts)

    def loss(self, decoder: Decoder, hidden: Tensor, dense: Tensor, tokens: Tensor) -> Tensor:
        """See `Objective.loss`."""
        with torch.no_grad():
            expected = self.outputs(decoder.head, dense, tokens)
        outputs = self.outputs(decoder.head, hidden, tokens)
        return self.distance(outputs, expected, Bank(expected)).sum()

    def compared(
        self, dense: Decoder, other: Decoder, streams: tuple[Tensor, Tensor], tokens: Tensor
    ) -> Iterator[tuple[float, int]]:
        """See `Objective.compared`."""
        models = zip((dense, other), streams, strict=True)
        expected, outputs = (self.outputs(model.head, stream, tokens) for model, stream in models)
        distances = self.distance(outputs, expected, Bank(expected))
        yield float(exact(distances).sum(dtype=torch.float64)), len(distances)


class DenseItems(Reference):
    """The dense model's outputs for the texts in some sequences."""

    def __init__(
        self, objective: ItemObjective, decoder: Decoder, streams: Sequence[Tensor], texts: Sequence[Tensor]
    ) -> None:
        super().__init__(decoder, streams)
        self.objective = objective
        self.tokens = torch.cat(list(texts))
        self.outputs = torch.cat(
            [objective.outputs(decoder.head, stream, text) for stream, text in zip(streams, texts, strict=True)]
        )
        self._begins = torch.nn.functional.pad(items.counts(self.tokens).cumsum(0), (1, 0)).tolist()

    def losses(self, piece: Window, ends: Sequence[Tensor]) -> Tensor:
        """See `Reference.losses`."""
        sums = torch.zeros(len(ends), piece[1] - piece[0], dtype=torch.float64)
        sequence = items.places(self.tokens[slice(*piece)]).sequence
        for row, end in zip(sums, ends, strict=True):
            row.index_add_(0, sequence, exact(self._distances(piece, end)).double())
        return sums

    def gradient(self, piece: Window, hidden: Tensor) -> Tensor:
        """See `Reference.gradient`."""
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._distances(piece, hidden).sum(), hidden)
        return gradient

    def _distances(self, piece: Window, hidden: Tensor) -> Tensor:
        begin, end = (self._begins[border] for border in piece)
        outputs = self.objective.outputs(self.decoder.head, hidden, self.tokens[slice(*piece)])
        return self.objective.distance(outputs, self.outputs[begin:end], Bank(self.outputs[:BANK], begin))
