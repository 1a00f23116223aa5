"""Hashes and tokens of documents, for splits and packed text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 18
"""Maximum number of characters that a tokenizer gets at once; some libraries abort the process on a line of 50 MB."""

THREADS = "TOKENIZERS_PARALLELISM"
"""Environment variable that lets the tokenizers library use all cores; it is read at every call."""


def document_hash(document: str) -> str:
    """Hash of a document's words, independent of white space and case: 32 hexadecimal digits."""
    normalised = " ".join(document.split()).casefold()
    return blake2b(normalised.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def added_bos(tokenizer: Any) -> int | None:
    """The bos token, if the tokenizer adds it to every text by default; else None.

    Models with such a tokenizer are used with bos, so every sequence begins with it.
    """
    bos: int | None = tokenizer.bos_token_id
    bare, by_default = (tokenizer("a", **how)["input_ids"] for how in ({"add_special_tokens": False}, {}))
    return bos if bos is not None and by_default[:1] == [bos] and bare[:1] != [bos] else None


def tokenise(texts: list[str], tokenizer: Any, bos: int | None) -> list[NDArray[np.int64]]:
    """Tokens of each text, with the tokens around it as described in `splits`; none for one without tokens."""
    before, after = ([] if token is None else [token] for token in (bos, tokenizer.eos_token_id))
    ids = token_ids(tokenizer, texts) if texts else []
    return [np.asarray([*before, *each, *after] if each else [], dtype=np.int64) for each in ids]


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
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


def pieces(text: str, most: int) -> Iterator[str]:
    """Pieces of at most `most` characters, cut before white space if there is any in the last eighth."""
    start = 0
    while len(text) - start > most:
        end = start + most
        space = max(text.rfind(mark, end - most // 8, end) for mark in (" ", "\n"))
        end = space if space > start else end
        yield text[start:end]
        start = end
    yield text[start:]
