"""The models of tokenizers that split text into pieces, and the same with fewer pieces.

BPE merges pieces in a fixed order. The merges of a token within a word are those of the token alone, because no merge
crosses its borders. If the tokens that they give are kept, then all kept merges are applied in the old order, and a
word whose tokens are all kept is split as before.

Unigram (arXiv 1804.10959) takes the split with the largest sum of scores. A split whose tokens are all kept is still
the best of those that are left. A character without a piece costs ten less than the lowest score, so the piece with
that score stays.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from math import inf
from typing import Any, Literal, NotRequired, TypedDict

from darwinlm.runtime.amounts import plural

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class BytePairs(TypedDict):
    """A BPE model: numbers of the pieces, and the merges in their order, each as a pair or as two pieces in a word."""

    type: Literal["BPE"]
    vocab: dict[str, int]
    merges: list[list[str]] | list[str]
    unk_token: NotRequired[str | None]
    byte_fallback: NotRequired[bool]
    ignore_merges: NotRequired[bool]
    continuing_subword_prefix: NotRequired[str | None]
    end_of_word_suffix: NotRequired[str | None]


class Scored(TypedDict):
    """A Unigram model: pieces by number, each with its score, and the number of the one for unknown characters."""

    type: Literal["Unigram"]
    vocab: list[tuple[str, float]]
    unk_id: int | None
    byte_fallback: NotRequired[bool]


class Pieces(ABC):
    """The pieces of a tokenizer's model.

    Attributes:
        numbers: Number of each piece.
        in_bytes: Whether characters without a piece are written in bytes.
    """

    numbers: dict[str, int]
    in_bytes: bool

    def needed(self) -> set[int]:
        """Numbers of the pieces without which a text couldn't be written: bytes, or else single characters."""
        if self.in_bytes:
            return {number for piece, number in self.numbers.items() if BYTE.fullmatch(piece)}
        return {number for piece, number in self.numbers.items() if len(piece) == 1}

    @abstractmethod
    def path(self, piece: str) -> list[int] | None:
        """Numbers of the pieces that have to be kept with a piece, itself included; None if text isn't split to it."""

    @abstractmethod
    def cut(self, numbers: Mapping[int, int]) -> BytePairs | Scored:
        """The JSON of the model with fewer pieces, whose new numbers are given by the old ones."""


class MergedPieces(Pieces):
    """The pieces of a BPE model."""

    def __init__(self, model: BytePairs) -> None:
        self._model = model
        self.numbers = model["vocab"]
        self.in_bytes = bool(model.get("byte_fallback"))
        self._merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}

    def needed(self) -> set[int]:
        """See `Pieces.needed`; unknown characters have a token too."""
        unknown = self._model.get("unk_token")
        return super().needed() | ({self.numbers[unknown]} if unknown in self.numbers else set())

    def path(self, piece: str) -> list[int] | None:
        """The pieces that it is merged from, one for each step."""
        # Whole words may be looked up directly.
        alone = [self.numbers[piece]] if self._model.get("ignore_merges") else None
        parts = list(piece)
        if any(part not in self.numbers for part in parts):
            return alone
        path = [self.numbers[part] for part in parts]
        while len(parts) > 1:
            rank, place = min((self._ranks.get(pair, inf), place) for place, pair in enumerate(pairwise(parts)))
            if rank == inf:
                return alone
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            path.append(self.numbers[parts[place]])
        return path

    def cut(self, numbers: Mapping[int, int]) -> BytePairs:
        """See `Pieces.cut`: merges whose pieces are all kept stay in their order."""
        pieces = {piece: numbers[old] for piece, old in self.numbers.items() if old in numbers}
        merges = [list(pair) for pair in self._merges if {*pair, "".join(pair)} <= pieces.keys()]
        return {**self._model, "vocab": dict(sorted(pieces.items(), key=lambda item: item[1])), "merges": merges}


class ScoredPieces(Pieces):
    """The pieces of a Unigram model."""

    def __init__(self, model: Scored) -> None:
        self._model = model
        self.numbers = {piece: number for number, (piece, _) in enumerate(model["vocab"])}
        self.in_bytes = bool(model.get("byte_fallback"))

    def needed(self) -> set[int]:
        """See `Pieces.needed`; also pieces with a character that has no piece of its own, and the lowest score."""
        numbers, unknown = super().needed(), self._model["unk_id"]
        if not self.in_bytes:
            single = {piece for piece in self.numbers if len(piece) == 1}
            numbers |= {number for piece, number in self.numbers.items() if not single.issuperset(piece)}
        scores = [score for _, score in self._model["vocab"]]
        numbers.add(scores.index(min(scores)))
        return numbers if unknown is None else numbers | {unknown}

    def path(self, piece: str) -> list[int]:
        """The piece alone: it isn't made from others."""
        return [self.numbers[piece]]

    def cut(self, numbers: Mapping[int, int]) -> Scored:
        """See `Pieces.cut`: scores stay as they are."""
        kept = sorted((new, old) for old, new in numbers.items() if old < len(self._model["vocab"]))
        unknown = self._model["unk_id"]
        vocabulary = [self._model["vocab"][old] for _, old in kept]
        return {**self._model, "vocab": vocabulary, "unk_id": None if unknown is None else numbers[unknown]}


def pieces_of(model: Any) -> Pieces | str:
    """The pieces of a model from its JSON, or why it can't be cut."""
    if model["type"] == "Unigram":
        twice = len(model["vocab"]) - len({piece for piece, _ in model["vocab"]})
        return f"lists {plural(twice, 'piece')} more than once" if twice else ScoredPieces(model)
    if model["type"] != "BPE":
        return f"is of the type {model['type']}, not BPE or Unigram"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "marks the inner or last pieces of words"
    return MergedPieces(model)
