"""How the characters of a text file are encoded: UTF-8, UTF-16 with a mark, or what its bytes suggest.

Spreadsheets write tables in UTF-16 or in the code page of the system, such as cp1252. Such an encoding isn't stored in
the file, so it is a guess, of which the user is told.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from darwinlm.runtime.errors import DataError, first_line

UTF8 = "utf-8-sig"
"""UTF-8, with or without a byte-order mark."""
CHECKED_BYTES = 1 << 24
"""Bytes at the beginning of a file that decide whether it is UTF-8."""

_SAMPLE_BYTES = 1 << 16
_WESTERN = "cp1252"
_REPLACEMENT = "\ufffd"


def encoding_of(path: Path) -> str:
    """The encoding of a text file, unpacked if its name ends in ``.gz``.

    `UTF8` if its first `CHECKED_BYTES` are UTF-8, and also if nothing else fits, as in damaged files, which reading
    then refuses. Raises DataError if the file can't be opened or unpacked.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _readable(path), cast("IO[bytes]", _opener(path)(path, "rb")) as file:
        block = file.read(_SAMPLE_BYTES)
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        before, checked = b"", 0
        while block and checked < CHECKED_BYTES:
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                return _guessed(before + block + file.read(_SAMPLE_BYTES)) or UTF8
            before, checked = block[-_SAMPLE_BYTES // 16 :], checked + len(block)
            block = file.read(_SAMPLE_BYTES)
    return UTF8


@contextmanager
def opened(path: Path, encoding: str | None = None) -> Iterator[IO[str]]:
    """Open a text file, unpacked if its name ends in ``.gz``; errors of reading become a `DataError`.

    Without an encoding, it is that of `encoding_of`.
    """
    encoding = encoding or encoding_of(path)
    with _readable(path), cast("IO[str]", _opener(path)(path, "rt", encoding=encoding)) as file:
        yield file


def _opener(path: Path) -> Callable[..., object]:
    return gzip.open if path.name.lower().endswith(".gz") else open


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise DataError(
            f"{path}: the file can't be read as UTF-8 text ({first_line(error)}). Convert it (for example with iconv), "
            "pack it again, or check its permissions."
        ) from error


def _guessed(sample: bytes) -> str | None:
    """The likely encoding of bytes that aren't UTF-8; None if they are damaged UTF-8, or no text at all."""
    replaced = [character for character in sample.decode("utf-8", "replace") if not character.isascii()]
    damaged = replaced.count(_REPLACEMENT)
    if len(replaced) - damaged > damaged or b"\0" in sample:
        return None
    from charset_normalizer import from_bytes

    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        return None
    # Code pages of Latin letters are alike, and short text rarely tells them apart: the most common one goes first.
    western = sample.decode(_WESTERN, "replace")
    if western == str(best) or any(match.encoding == _WESTERN for match in matches):
        return _WESTERN
    return best.encoding
