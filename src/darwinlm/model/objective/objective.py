"""What of the dense model a smaller one must keep, and the distance between the two.

All that a run does with this goes through one object. The database takes its gradients from it (`sensitivity`), the
search its losses and their slopes (`reference`), the refit its choice (`compared`), the training of candidates and the
recovery their loss (`loss`, `outputs`). Each kind of model has a file of its own beside this one; `chosen.py` finds it.

Letters: b sequences, t tokens in each, m residual width. Streams are residual streams after the last block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from darwinlm.model.walk.decoder import Decoder

Window = tuple[int, int]
"""Range of sequences on which models are compared, or a piece of it for one forward pass: first index, end."""


class Reference(ABC):
    """What the dense model gives on some text, with which candidates are compared.

    `streams` are those of the dense model, [b, t, m] for each batch. All batches but the last have the same size, and
    pieces never cross their borders.

    Attributes:
        dense: The streams of all batches, [n, t, m].
    """

    def __init__(self, decoder: Decoder, streams: Sequence[Tensor]) -> None:
        self.decoder = decoder
        self.dense = torch.cat(list(streams))
        self.batch_sequences = len(streams[0])

    @abstractmethod
    def losses(self, piece: Window, ends: Sequence[Tensor]) -> Float[Tensor, "candidates b"]:
        """Summed distance on each sequence of a piece, float64, from each candidate's stream [b, t, m]."""

    @abstractmethod
    def gradient(self, piece: Window, hidden: Float[Tensor, "b t m"]) -> Float[Tensor, "b t m"]:
        """Gradient of the summed distance of a piece at a candidate's stream."""


class Objective(ABC):
    """A kind of output that a smaller model must keep.

    Attributes:
        name: Name in records.
        unit: Unit of the distance, for tables and sentences.
        compared_at: What is compared, in the plural: tokens, texts.
        reads: Whether the model reads texts one by one, which `items.py` puts into sequences; else it reads a stream.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    compared_at: ClassVar[str] = "texts"
    reads: ClassVar[bool] = True

    @abstractmethod
    def words(self) -> str:
        """What is kept, to end a sentence."""

    @abstractmethod
    def counts(self, tokens: Int64[Tensor, "b t"]) -> Int64[Tensor, " b"]:
        """How many things are compared in each sequence; means are over all of them."""

    @abstractmethod
    def sensitivity(
        self, decoder: Decoder, hidden: Float[Tensor, "b t m"], tokens: Int64[Tensor, "b t"]
    ) -> Float[Tensor, "b t m"]:
        """Gradients at a stream of the dense model whose second moments are the curvature of the distance there.

        The distance itself has no gradient at the dense model. Its curvature is that of its Gauss-Newton approximation.
        """

    @abstractmethod
    def reference(self, decoder: Decoder, streams: Sequence[Tensor], texts: Sequence[Tensor]) -> Reference:
        """What the dense model gives on batches of tokens [b, t], from its streams; the decoder has its head."""

    @abstractmethod
    def loss(
        self,
        decoder: Decoder,
        hidden: Float[Tensor, "b t m"],
        dense: Float[Tensor, "b t m"],
        tokens: Int64[Tensor, "b t"],
    ) -> Float[Tensor, ""]:
        """Summed distance of a model with the dense model's head, which can be differentiated at `hidden`."""

    @abstractmethod
    def compared(
        self, dense: Decoder, other: Decoder, streams: tuple[Tensor, Tensor], tokens: Int64[Tensor, "b t"]
    ) -> Iterator[tuple[float, int]]:
        """Summed distances, each with the number of things compared, of two models with their own heads.

        `streams` are that of the dense model and that of the other one, [b, t, m] each.
        """
