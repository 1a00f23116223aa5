"""Hashes and tokens of documents, for splits and packed text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 18
"""Maximum number of characters that a tokenizer gets at once; some libraries abort the process on a line of 50 MB."""

THREADS = "TOKENIZERS_PARALLELISM"
"""Environment variable that lets the tokenizers library use all cores; it is read at every call."""


def document_hash(document: str) -> str:
    """Hash of a document's words, independent of white space and case: 32 hexadecimal digits."""
    normalised = " ".join(document.split()).casefold()
    return blake2b(normalised.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def added_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The bos token, if the tokenizer adds it to every text by default; else None.

    Models with such a tokenizer are used with bos, so every sequence begins with it.
    """
    bos: int | None = tokenizer.bos_token_id
    if bos is None:
        return None
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    by_default = tokenizer("a")["input_ids"]
    return bos if by_default[:1] == [bos] and bare[:1] != [bos] else None


def tokenise(texts: list[str], tokenizer: PreTrainedTokenizerBase, bos: int | None) -> list[NDArray[np.int64]]:
    """Tokens of each text, [n] each, with those around it as described in `splits`; empty for one without tokens."""
    before = [] if bos is None else [bos]
    after = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    documents = token_ids(tokenizer, texts) if texts else []
    return [np.asarray([*before, *ids, *after] if ids else [], dtype=np.int64) for ids in documents]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokens of each text without special ones; long texts are tokenised in pieces."""
    divided = [list(pieces(text, PIECE)) for text in texts]
    flat = [piece for parts in divided for piece in parts]
    with _all_cores():
        encoded = tokenizer(flat, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids = iter(encoded["input_ids"])
    return [[token for _ in parts for token in next(ids)] for parts in divided]


@contextmanager
def _all_cores() -> Iterator[None]:
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def pieces(text: str, longest: int) -> Iterator[str]:
    """Pieces of at most `longest` characters, cut before white space if there is any in the last eighth."""
    start = 0
    while len(text) - start > longest:
        end = start + longest
        space = max(text.rfind(mark, end - longest // 8, end) for mark in (" ", "\n"))
        end = space if space > start else end
        yield text[start:end]
        start = end
    yield text[start:]
