"""Text for each purpose, disjoint by document, as blocks of tokens.

Search data is never evaluation data: every document serves one purpose only. Which one is read off the document
itself, by a seeded hash, whatever the order of the documents and however many are read. Only when a source ends before
every purpose has its text may a document that its own purpose had no room for serve another.

Letters: B blocks, T tokens in a block (`seq_len`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch

from darwinlm.data.blocks import TokenBlocks
from darwinlm.data.packing import Document, Packer, added_bos, document_hash
from darwinlm.errors import DataError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

PURPOSES = ("calibration", "fitness", "validation", "training", "evaluation")
"""What text is needed for, in the order of the stages; training is the only one whose share may be 0."""

_SMALLEST_WEIGHT = 0.02
"""Part of the documents that even the smallest purpose gets: with less, a long stream would be read to fill it."""

_FIRST_BATCH_CHARACTERS = 1 << 12
"""Text that is tokenised to learn how many characters make a token."""

_BATCH_CHARACTERS = 1 << 18
"""The most text that is tokenised in one go, but for the last document of it."""

_SPARE_CHARACTERS_PER_TOKEN = 16
"""How much text of full purposes is kept for the end, for each token that is wanted."""

_LEFT = 4
"""What is kept of documents that gave a part only, for the end: so many times the tokens that a purpose wants."""


def _setting(purpose: str) -> str:
    """Name the field of the recipe that says how many tokens a purpose gets."""
    return f"text.{purpose}_tokens"


@dataclass(frozen=True)
class TextPlan:
    """How much text each purpose gets, and how documents are dealt out.

    Attributes:
        shares: Tokens wanted for each purpose, some of `PURPOSES`; rounded up to whole blocks.
        seq_len: Tokens in a block, T.
        seed: Another seed deals the documents out differently.
        document_tokens: Maximum number of tokens from one document as long as there are others; None takes whole
            documents.

    Raises:
        RecipeError: A purpose is unknown, or a number is out of range.
    """

    shares: Mapping[str, int]
    seq_len: int
    seed: int = 0
    document_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise RecipeError(f"text.sequence_length is {self.seq_len}: a block needs at least one token.")
        if self.document_tokens is not None and self.document_tokens < 1:
            raise RecipeError(f"text.document_tokens is {self.document_tokens}: it has to be at least 1.")
        unknown = sorted(set(self.shares) - set(PURPOSES))
        if unknown:
            raise RecipeError(f"Text has no purpose '{unknown[0]}': the purposes are {', '.join(PURPOSES)}.")
        if not self.shares:
            raise RecipeError(f"No purpose is given: name at least one of {', '.join(PURPOSES)}.")
        for purpose, tokens in self.shares.items():
            least = 0 if purpose == "training" else 1
            if tokens < least:
                raise RecipeError(f"{_setting(purpose)} is {tokens}: it has to be at least {least}.")

    def blocks_wanted(self, purpose: str) -> int:
        """Count the blocks of a purpose, B: its share, rounded up to whole blocks."""
        return -(-self.shares[purpose] // self.seq_len)

    def purpose_of(self, hashed: str) -> str:
        """Assign a document to a purpose, by the seed and its hash alone.

        Every purpose draws a number from the hash, -ln(u) / weight, and the smallest wins: the purposes get documents
        in proportion to their weights, and changing one share moves no document between two others. A weight is the
        share of the tokens, but at least 2 %.

        Args:
            hashed: The `document_hash`.

        Returns:
            One of the purposes whose share isn't 0.
        """
        total = sum(self.shares.values())
        draws: list[tuple[float, str]] = []
        for purpose, tokens in self.shares.items():
            if tokens > 0:
                digest = blake2b(f"{self.seed}:{purpose}:{hashed}".encode(), digest_size=8).digest()
                uniform = (int.from_bytes(digest, "big") + 1) / 2**64
                draws.append((-math.log(uniform) / max(tokens / total, _SMALLEST_WEIGHT), purpose))
        if not draws:
            raise RecipeError(f"No text is wanted: raise {' or '.join(map(_setting, self.shares))}.")
        return min(draws)[1]


def split_documents(
    documents: Iterable[str],
    shares: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    seed: int,
    *,
    source: str = "",
    document_tokens: int | None = None,
) -> dict[str, TokenBlocks]:
    """Deal documents out to the purposes, disjointly, and pack each purpose's text into blocks.

    Documents are read until every purpose has its tokens, and no further (but for the batch at hand). A repeated
    document (see `document_hash`) is dropped. One whose purpose is full is set aside; when the documents end while
    purposes still lack text, what was set aside is handed to them in the order of the hashes. Each document is
    tokenised at most once.

    Packing: a document becomes the tokenizer's bos token (if the tokenizer adds one by default), its own tokens without
    special ones, and the eos token (if there is one); these are joined end to end and cut into blocks of exactly T
    tokens, and where the tokenizer adds bos it takes the place of every block's first token. What is left at the end is
    dropped. Of a document with more than `document_tokens` tokens so many go in, in
    a row, from a place that its hash decides: a few thousand tokens would otherwise be a handful of documents. More of
    the same documents follows, as much of each in turn, only where the documents end while purposes still lack text.

    Args:
        documents: Texts, read lazily.
        shares: Tokens wanted for each purpose; see `TextPlan`.
        tokenizer: The model's tokenizer.
        seq_len: Tokens in a block, T.
        seed: Seed; together with a document's hash it determines the document's purpose.
        source: Source of the documents, for messages and for the result.
        document_tokens: Maximum number of tokens from one document as long as there are others; None takes whole
            documents.

    Returns:
        For each purpose of `shares`, blocks [B, T]; B is 0 where the share is.

    Raises:
        DataError: There is too little text; the message says what lacks how much and which settings to lower.
        RecipeError: A purpose is unknown, or a number is out of range.
    """
    plan = TextPlan(shares, seq_len, seed, document_tokens)
    shelves = {
        purpose: _Shelf(plan.blocks_wanted(purpose) * seq_len, document_tokens)
        for purpose in PURPOSES
        if purpose in shares
    }
    dealer = _Dealer(plan, shelves, Packer(tokenizer))
    if any(shelf.lacks for shelf in shelves.values()):
        dealer.deal(documents)
    bos = added_bos(tokenizer)
    short = [purpose for purpose, shelf in shelves.items() if shelf.lacks]
    if short:
        lacking = "; ".join(f"{purpose} has {shelves[purpose].progress} tokens" for purpose in short)
        read = f"{dealer.n_documents} documents were read, {dealer.n_repeated} of them repeated"
        named = f"Text source {source!r}" if source else "The text"
        raise DataError(
            f"{named} is too short: {lacking} ({read}; no document serves two purposes). "
            f"Give more text, or lower {' and '.join(map(_setting, short))}."
        )
    return {
        purpose: TokenBlocks(shelf.blocks(seq_len, bos), tuple(shelf.hashes), source)
        for purpose, shelf in shelves.items()
    }


class _Shelf:
    """The text that one purpose has so far."""

    def __init__(self, wanted: int, document_tokens: int | None) -> None:
        self.wanted = wanted
        self.document_tokens = document_tokens
        self.n_tokens = 0
        self.hashes: list[str] = []
        self._pieces: list[NDArray[np.int64]] = []
        self._left: list[NDArray[np.int64]] = []
        self._left_tokens = 0

    @property
    def lacks(self) -> int:
        """Tokens still needed."""
        return self.wanted - self.n_tokens

    @property
    def progress(self) -> str:
        """Tokens there are, and tokens wanted."""
        return f"{self.n_tokens} of {self.wanted}"

    def put(self, hashed: str, tokens: NDArray[np.int64]) -> int:
        """Add a document's tokens, as many as are needed and may be taken; returns how many may."""
        most = min(self.document_tokens or len(tokens), len(tokens))
        start = int(hashed, 16) % (len(tokens) - most + 1)
        self.hashes.append(hashed)
        self._add(tokens[start : start + most])
        for left in (tokens[start + most :], tokens[:start]):
            if len(left) and self._left_tokens < _LEFT * self.wanted:
                self._left.append(left)
                self._left_tokens += len(left)
        return most

    def fill(self) -> None:
        """Add what is left of the documents, as much of each in turn, as far as tokens are needed."""
        most = self.document_tokens or self.wanted
        while self.lacks and self._left:
            for left in self._left:
                self._add(left[:most])
            self._left = [left[most:] for left in self._left if len(left) > most]

    def _add(self, tokens: NDArray[np.int64]) -> None:
        kept = tokens[: self.lacks]
        self._pieces.append(kept)
        self.n_tokens += len(kept)

    def blocks(self, seq_len: int, bos: int | None) -> torch.Tensor:
        """Join the tokens, cut them, and put bos in front if there is one: [B, T]."""
        joined = np.concatenate(self._pieces) if self._pieces else np.empty(0, np.int64)
        blocks = torch.from_numpy(joined.reshape(-1, seq_len))
        if bos is not None:
            blocks[:, 0] = bos
        return blocks


class _Dealer:
    """Hands documents to the shelves, a batch at a time."""

    def __init__(self, plan: TextPlan, shelves: Mapping[str, _Shelf], packer: Packer) -> None:
        self.n_documents = 0
        self.n_repeated = 0
        self._plan = plan
        self._shelves = shelves
        self._packer = packer
        self._tokenised_characters = 0
        self._tokenised_tokens = 0
        self._spare: list[Document] = []
        self._spare_room = _SPARE_CHARACTERS_PER_TOKEN * sum(shelf.wanted for shelf in shelves.values())

    def deal(self, documents: Iterable[str]) -> None:
        """Fill the shelves from the documents; then, if they ended too early, from what was set aside."""
        batch: list[tuple[str, Document]] = []
        waiting_characters = 0
        for document in self._new(documents):
            purpose = self._plan.purpose_of(document.hashed)
            if not self._shelves[purpose].lacks:
                self._set_aside(document)
                continue
            batch.append((purpose, document))
            waiting_characters += len(document.text)
            if waiting_characters >= self._batch_size():
                self._place(batch)
                batch, waiting_characters = [], 0
                if self._lacking() == 0:
                    return
        self._place(batch)
        self._hand_out_spare()

    def _new(self, documents: Iterable[str]) -> Iterator[Document]:
        """Yield each document once, by its hash."""
        seen: set[str] = set()
        for text in documents:
            self.n_documents += 1
            hashed = document_hash(text)
            if hashed in seen:
                self.n_repeated += 1
                continue
            seen.add(hashed)
            yield Document(hashed, text)

    def _lacking(self) -> int:
        return sum(shelf.lacks for shelf in self._shelves.values())

    def _batch_size(self) -> int:
        """Characters to tokenise at once: many for speed, but hardly more than the tokens still needed."""
        if self._tokenised_tokens == 0:
            return min(_FIRST_BATCH_CHARACTERS, self._lacking())
        characters_per_token = self._tokenised_characters / self._tokenised_tokens
        return min(_BATCH_CHARACTERS, math.ceil(characters_per_token * self._lacking()))

    def _place(self, batch: list[tuple[str, Document]]) -> None:
        self._packer.tokenise([document for _, document in batch])
        for purpose, document in batch:
            shelf = self._shelves[purpose]
            if shelf.lacks:
                self._tokenised_characters += len(document.text)
                self._tokenised_tokens += self._put(shelf, document)
            else:
                self._set_aside(document)

    def _put(self, shelf: _Shelf, document: Document) -> int:
        assert document.tokens is not None, "documents are tokenised before they are placed"
        return shelf.put(document.hashed, document.tokens) if len(document.tokens) else 0

    def _set_aside(self, document: Document) -> None:
        """Keep a document of a full purpose for the end, unless so much is kept already that it can't be needed."""
        if self._spare_room > 0:
            self._spare_room -= len(document.text)
            self._spare.append(document)

    def _hand_out_spare(self) -> None:
        spare = iter(sorted(self._spare, key=lambda document: document.hashed))
        for shelf in self._shelves.values():
            while shelf.lacks and (document := next(spare, None)) is not None:
                self._packer.tokenise([document])
                self._put(shelf, document)
            shelf.fill()
