"""Training text as packed sequences on disk, of any length, with random access, and resumable.

A source is read once, tokenised, and written into shards of plain little-endian integers. Documents of other purposes
are excluded by their hashes. Training can then start anywhere, in any order, without reading earlier text. A shortage
of text is detected before training.

Letters: B sequences, T tokens in a sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import (
    check_file,
    check_room,
    damaged,
    file_digest,
    read_as,
    write_atomically,
    write_json,
)
from darwinlm.runtime.errors import DataError
from darwinlm.text.packing import Document, added_bos, document_hash, tokenise

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

INDEX = "packed.json"
SHARD_TOKENS = 1 << 24
_BATCH = 512
"""Documents that are tokenised at once, on all cores."""


class PackedText(Dataset[dict[str, torch.Tensor]]):
    """Sequences of tokens on disk, written by `pack_documents`.

    T is `seq_len`, which may differ from the length for which the shards were written, and B is `sequences`. `bos`
    replaces every sequence's first token. `repeats` makes sequences with repeated passages, such as
    `looking_back.with_repeats`. Raises ArtifactError if a shard is missing or was changed.
    """

    def __init__(
        self,
        folder: Path,
        seq_len: int,
        sequences: int,
        bos: int | None = None,
        *,
        repeats: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        index = _read_index(folder)
        self.seq_len = seq_len
        self.sequences = sequences
        self.bos = bos
        self.repeats = repeats
        self._shard_tokens = int(index["shard_tokens"])
        self._shards = []
        for number in range(index["shards"]):
            path = _shard(folder, number)
            check_file(path, dict(enumerate(index["digests"])).get(number))
            self._shards.append(np.memmap(path, dtype=index["dtype"], mode="r"))
        there = sum(len(shard) for shard in self._shards)
        if there < sequences * seq_len:
            raise damaged(folder / INDEX, f"{sequences * seq_len} tokens are needed, but the shards hold {there}")

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, sequence: int) -> dict[str, torch.Tensor]:
        """`input_ids` of a sequence, [T] int64."""
        parts = []
        start = sequence * self.seq_len
        end = start + self.seq_len
        while start < end:
            shard, place = divmod(start, self._shard_tokens)
            part = self._shards[shard][place : place + end - start]
            parts.append(part)
            start += len(part)
        tokens = torch.from_numpy(np.concatenate(parts).astype(np.int64))
        if self.bos is not None:
            tokens[0] = self.bos
        return {"input_ids": tokens if self.repeats is None else self.repeats(tokens[None])[0]}


def pack_documents(
    documents: Iterable[str],
    folder: Path,
    tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reserved: Collection[str] = (),
    vocabulary: int,
    source: str = "",
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Pack the first `tokens` tokens of a source, without repeated and reserved documents.

    The first process reads, tokenises on all of its cores, and writes. Finished shards of an interrupted call are kept;
    their documents are read again but not tokenised. Documents must come in the same order every time. `reserved` are
    the hashes of documents of other purposes. The size of the model's vocabulary determines the bytes per token. Raises
    StorageError, or DataError if the source has too few tokens.
    """
    with parallel.agree():
        if parallel.is_main():
            kind = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
            writer = _Writer(folder, tokens, kind, shard_tokens, progress)
            if writer.lacks > 0:
                size, remedy = writer.lacks * kind.itemsize, "choose another output folder, or lower recovery.tokens"
                check_room(folder, size, "the packed training text takes", remedy)
                count = _fill(writer, documents, tokenizer, set(reserved))
                if writer.lacks > 0:
                    raise _too_short(tokens, writer.there, source, count)


def _fill(writer: _Writer, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, seen: set[str]) -> int:
    """Write documents that weren't seen before, until there are enough; returns the number of documents read."""
    finished, bos, count = int(writer.index["documents"]), added_bos(tokenizer), 0
    numbered = iter(enumerate(documents, start=1))
    while writer.lacks > 0 and (batch := list(itertools.islice(numbered, _BATCH))):
        new: list[Document] = []
        for count, text in batch:
            hashed = document_hash(text)
            if hashed not in seen and count > finished:
                new.append(Document(hashed, text))
            seen.add(hashed)
        tokenise(new, tokenizer, bos)
        if count > finished:
            writer.add(new, count)
    return count


def _too_short(tokens: int, there: int, source: str, documents: int) -> DataError:
    named = f"Text source {source!r}" if source else "The text"
    fewer = ", lower recovery.tokens, or allow recovery.epochs above 1" if there else " (--text)"
    left = f"there are only {there}" if there else "none are left"
    return DataError(
        f"{named} is too short: training needs {tokens} tokens, but {left} ({documents} documents were read; those "
        f"of other purposes are excluded). Give more text{fewer}."
    )


@dataclass
class _Writer:
    folder: Path
    wanted: int
    dtype: np.dtype[Any]
    shard_tokens: int
    progress: Callable[[int, int], None]

    def __post_init__(self) -> None:
        self.index: dict[str, Any] = {"dtype": self.dtype.str, "shard_tokens": self.shard_tokens}
        self.index |= {"shards": 0, "written": 0, "documents": 0, "carry": [], "digests": []}
        if (self.folder / INDEX).exists():
            self.index = _read_index(self.folder)
        self._pieces: list[NDArray[np.int64]] = [np.asarray(self.index["carry"], dtype=np.int64)]
        self._held = len(self._pieces[0])

    @property
    def lacks(self) -> int:
        """Number of tokens still to be written."""
        return self.wanted - int(self.index["written"])

    @property
    def there(self) -> int:
        """Number of tokens so far."""
        return int(self.index["written"]) + self._held

    def add(self, documents: list[Document], count: int) -> None:
        """Add tokenised documents, the last of which is number `count` of the source, and write full shards."""
        for document in documents:
            assert document.tokens is not None, "documents are tokenised before they are written"
            self._pieces.append(document.tokens)
            self._held += len(document.tokens)
        while self.lacks > 0 and self._held >= min(self.shard_tokens, self.lacks):
            self._write(count)

    def _write(self, count: int) -> None:
        joined = np.concatenate(self._pieces)
        shard = joined[: min(self.shard_tokens, self.lacks)].astype(self.dtype)
        path = _shard(self.folder, self.index["shards"])
        write_atomically(path, shard.tofile)
        self.index["digests"].append(file_digest(path))
        self._pieces, self._held = [joined[len(shard) :]], len(joined) - len(shard)
        written = self.index["written"] + len(shard)
        carry = [] if written >= self.wanted else self._pieces[0].tolist()
        self.index |= {"shards": self.index["shards"] + 1, "written": written, "documents": count, "carry": carry}
        write_json(self.folder / INDEX, self.index)
        self.progress(written, self.wanted)


@dataclass(frozen=True)
class _Index:
    dtype: str
    shard_tokens: int
    shards: int
    written: int
    documents: int
    carry: list[int]
    digests: list[str]


def _read_index(folder: Path) -> dict[str, Any]:
    return asdict(read_as(folder / INDEX, _Index))


def _shard(folder: Path, number: int) -> Path:
    return folder / f"tokens_{number:05d}.bin"
