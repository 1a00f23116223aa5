"""Text for each purpose, disjoint by document, as sequences of tokens.

Search data is never evaluation data: every document has a single purpose. A seeded hash of the document determines it,
independent of the order and number of documents. There is one exception: if a source ends before every purpose has
enough text, surplus documents of full purposes are given to others.

Letters: B sequences, T tokens in a sequence (`seq_len`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch

from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.packing import added_bos, document_hash, tokenise
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.source_words import in_words, is_own_text

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

PURPOSES = ("calibration", "fitness", "validation", "training", "evaluation")
"""Purposes of text in the order of the stages; only training may have a share of 0."""


class TextTooShortError(DataError):
    """The source has too little text for all purposes: only `available` tokens in all, from so many `documents`."""

    def __init__(self, message: str, available: int, documents: int) -> None:
        super().__init__(message)
        self.available, self.documents = available, documents


_SMALLEST_WEIGHT = 0.02
"""Minimum share of documents of a purpose; with less, filling it would read too much of a stream."""

_SPARE_CHARACTERS_PER_TOKEN = 16
"""Characters of surplus documents that are kept for each requested token."""

_UNUSED = 4
"""Limit on the unused parts of documents, as a multiple of the tokens of their purpose."""

DOCUMENT_TOKENS = 512
"""Maximum number of tokens from one document as long as there are others. A search on three whole documents did worse;
see docs/notebook/quality.md."""


def split_documents(
    documents: Iterable[str],
    shares: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    seed: int,
    *,
    source: str = "",
    document_tokens: int = DOCUMENT_TOKENS,
) -> dict[str, TokenSequences]:
    """Assign documents to purposes, disjointly, and pack the text of each purpose into sequences.

    Documents are read until every purpose has its tokens, as many as `shares` says. A repeated document (see
    `document_hash`) is dropped. Documents of full purposes are kept as surplus. If the source ends and other purposes
    need text, they get the surplus in the order of the hashes.

    Packing: a document becomes the bos token (if the tokenizer adds one by default), its tokens without special ones,
    and the eos token (if there is one). These are joined and cut into sequences of exactly T tokens. If the tokenizer
    adds bos, it replaces the first token of every sequence. A document with more than `document_tokens` tokens gives a
    passage of this length, from a position given by its hash, so that a few thousand tokens come from many documents.
    Only if the source ends and a purpose needs more text, further tokens of the same documents are used, in turn.

    Returns sequences [B, T] for each purpose in `shares`; B is 0 if the share is. Raises TextTooShortError; its message
    gives the shortages and the settings to lower.
    """
    shelves = {
        purpose: _Shelf(-(-shares[purpose] // seq_len) * seq_len, document_tokens)  # whole sequences
        for purpose in PURPOSES
        if purpose in shares
    }
    bos, n_documents, n_repeated = added_bos(tokenizer), 0, 0
    if any(shelf.lacks for shelf in shelves.values()):
        n_documents, n_repeated = _deal(documents, shares, seed, shelves, tokenizer, bos)
    short = [purpose for purpose, shelf in shelves.items() if shelf.lacks]
    if short:
        settings = ["search.rounds" if purpose == "training" else f"text.{purpose}_tokens" for purpose in short]
        shortages = "; ".join(
            f"{purpose} has {shelves[purpose].n_tokens} of {shelves[purpose].requested} tokens" for purpose in short
        )
        read = f"{n_documents} documents were read, {n_repeated} of them repeated"
        own = bool(source) and is_own_text(source)
        name = f"Text source {in_words(source)!r}" if source else "The text"
        raise TextTooShortError(
            f"{name} is too short: {shortages} ({read}; no document serves two purposes). "
            f"Give {'text with --text' if own else 'more text'}, or lower {' and '.join(settings)}.",
            sum(shelf.n_tokens for shelf in shelves.values()),
            n_documents - n_repeated,
        )
    return {
        purpose: TokenSequences(shelf.sequences(seq_len, bos), tuple(shelf.hashes), source)
        for purpose, shelf in shelves.items()
    }


def purpose_of(hashed: str, shares: Mapping[str, int], seed: int) -> str:
    """Purpose of a document, by the seed and its hash alone; `shares` holds the number of tokens for each purpose.

    Every purpose draws a number from the hash, -ln(u) / weight, and the smallest wins. So purposes get documents in
    proportion to their weights, and changing one share never moves documents between two others. A weight is the share
    of the tokens, but at least 2 %.
    """
    total = sum(shares.values())
    draws: list[tuple[float, str]] = []
    for purpose, tokens in shares.items():
        if tokens > 0:
            digest = blake2b(f"{seed}:{purpose}:{hashed}".encode(), digest_size=8).digest()
            uniform = (int.from_bytes(digest, "big") + 1) / 2**64
            draws.append((-math.log(uniform) / max(tokens / total, _SMALLEST_WEIGHT), purpose))
    return min(draws)[1]


def shares_within(shares: Mapping[str, int], available: int, seq_len: int) -> dict[str, int] | None:
    """Shares scaled down to a short text, in whole sequences.

    `available` and `seq_len` are in tokens. There is at least a sequence for each purpose; None if there is too little
    text for that.
    """
    available_sequences = available // seq_len
    if available_sequences < len(shares):
        return None
    part = min(1.0, available / sum(shares.values()))
    sequences = {purpose: max(1, int(part * tokens / seq_len)) for purpose, tokens in shares.items()}
    while sum(sequences.values()) > available_sequences:
        sequences[max(sequences, key=sequences.__getitem__)] -= 1
    return {purpose: count * seq_len for purpose, count in sequences.items()}


class _Shelf:
    """The text of one purpose, which is filled document by document.

    Attributes:
        requested: Number of tokens to gather.
        document_tokens: Maximum number of tokens from one document, as long as there are others.
        hashes: Hashes of the documents in it.
    """

    def __init__(self, requested: int, document_tokens: int) -> None:
        self.requested = requested
        self.document_tokens = document_tokens
        self.n_tokens = 0
        self.hashes: list[str] = []
        self._pieces: list[NDArray[np.int64]] = []
        self._unused: list[NDArray[np.int64]] = []
        self._unused_tokens = 0

    @property
    def lacks(self) -> int:
        """Number of tokens still needed."""
        return self.requested - self.n_tokens

    def put(self, hashed: str, tokens: NDArray[np.int64]) -> None:
        """Add as many of a document's tokens as are needed and allowed."""
        length = min(self.document_tokens, len(tokens))
        if not length:
            return
        start = int(hashed, 16) % (len(tokens) - length + 1)
        self.hashes.append(hashed)
        self._add(tokens[start : start + length])
        for unused in (tokens[start + length :], tokens[:start]):
            if len(unused) and self._unused_tokens < _UNUSED * self.requested:
                self._unused.append(unused)
                self._unused_tokens += len(unused)

    def fill(self) -> None:
        """Add unused parts of the documents in turn until there are enough tokens."""
        length = self.document_tokens
        while self.lacks and self._unused:
            for unused in self._unused:
                self._add(unused[:length])
            self._unused = [unused[length:] for unused in self._unused if len(unused) > length]

    def _add(self, tokens: NDArray[np.int64]) -> None:
        piece = tokens[: self.lacks]
        self._pieces.append(piece)
        self.n_tokens += len(piece)

    def sequences(self, seq_len: int, bos: int | None) -> torch.Tensor:
        """Join and cut the tokens, and set the bos token if there is one, [B, T]."""
        joined = np.concatenate(self._pieces) if self._pieces else np.empty(0, np.int64)
        sequences = torch.from_numpy(joined.reshape(-1, seq_len))
        if bos is not None:
            sequences[:, 0] = bos
        return sequences


def _deal(
    documents: Iterable[str],
    shares: Mapping[str, int],
    seed: int,
    shelves: Mapping[str, _Shelf],
    tokenizer: PreTrainedTokenizerBase,
    bos: int | None,
) -> tuple[int, int]:
    """Fill the shelves from the documents and, if these are too few, from the surplus of full purposes.

    Returns the numbers of documents read, and of repeated ones.
    """
    seen: set[str] = set()
    spare: list[tuple[str, str]] = []
    count, room = 0, _SPARE_CHARACTERS_PER_TOKEN * sum(shelf.requested for shelf in shelves.values())

    def place(hashed: str, text: str, shelf: _Shelf) -> None:
        shelf.put(hashed, *tokenise([text], tokenizer, bos))

    for count, text in enumerate(documents, start=1):
        hashed = document_hash(text)
        if hashed in seen:
            continue
        seen.add(hashed)
        shelf = shelves[purpose_of(hashed, shares, seed)]
        if shelf.lacks:
            place(hashed, text, shelf)
            if not any(shelf.lacks for shelf in shelves.values()):
                return count, count - len(seen)
        elif room > 0:
            room -= len(text)
            spare.append((hashed, text))
    surplus = iter(sorted(spare))
    for shelf in shelves.values():
        while shelf.lacks and (extra := next(surplus, None)) is not None:
            place(*extra, shelf)
        shelf.fill()
    return count, count - len(seen)
