"""Training text as packed sequences on disk, of any length, with random access.

A source is read once, tokenised, and written into one file of plain little-endian integers. Documents of other purposes
are excluded by their hashes. Training can then start anywhere, in any order, without reading earlier text. A shortage
of text is detected before training.

Letters: B sequences, T tokens in a sequence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from darwinlm.steps.text.packing import added_bos, document_hash, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INDEX, TOKENS = "text.json", "tokens.bin"
_BATCH = 512
"""Documents that are tokenised at once, on all cores."""


@dataclass(frozen=True)
class _Index:
    dtype: str
    tokens: int
    digest: str


class PackedText(Dataset[dict[str, torch.Tensor]]):
    """Sequences of tokens on disk, written by `pack_documents`.

    T is `seq_len`, and B is `sequences`. `bos` replaces every sequence's first token. `repeats` makes sequences with
    repeated passages, such as `looking_back.with_repeats`. Raises ArtifactError if the file is missing or was changed.
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
        index = read_as(folder / INDEX, _Index)
        self.seq_len = seq_len
        self.sequences = sequences
        self.bos = bos
        self.repeats = repeats
        check_file(folder / TOKENS, index.digest)
        self._tokens = np.memmap(folder / TOKENS, dtype=index.dtype, mode="r")
        if len(self._tokens) < sequences * seq_len:
            held = len(self._tokens)
            raise damaged(folder / INDEX, f"{sequences * seq_len} tokens are needed, but the file holds {held}")

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, sequence: int) -> dict[str, torch.Tensor]:
        """`input_ids` of a sequence, [T] int64."""
        start = sequence * self.seq_len
        tokens = torch.from_numpy(self._tokens[start : start + self.seq_len].astype(np.int64))
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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Pack the first `tokens` tokens of a source, without repeated and reserved documents.

    The first process reads, tokenises on all of its cores, and writes; a finished file is kept. `reserved` are the
    hashes of documents of other purposes. The size of the model's vocabulary determines the bytes per token. Raises
    StorageError, or DataError if the source has too few tokens.
    """

    def write(path: Path) -> None:
        seen, bos, packed, count = set(reserved), added_bos(tokenizer), 0, 0
        unread = iter(documents)
        with path.open("wb") as file:
            while packed < tokens and (batch := list(itertools.islice(unread, _BATCH))):
                count += len(batch)
                new: dict[str, str] = {}
                for text in batch:
                    if (hashed := document_hash(text)) not in seen:
                        new.setdefault(hashed, text)
                seen |= new.keys()
                for tokens_of in tokenise([*new.values()], tokenizer, bos):
                    kept = tokens_of[: tokens - packed].astype(kind)
                    kept.tofile(file)
                    packed += len(kept)
                progress(packed, tokens)
        if packed < tokens:
            raise _too_short(tokens, packed, source, count)

    with parallel.agree():
        if parallel.is_main() and not ((folder / INDEX).exists() and read_as(folder / INDEX, _Index).tokens >= tokens):
            kind = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
            remedy = "choose another output folder, or lower recovery.tokens"
            check_room(folder, tokens * kind.itemsize, "the packed training text takes", remedy)
            write_atomically(folder / TOKENS, write)
            write_json(folder / INDEX, asdict(_Index(kind.str, tokens, file_digest(folder / TOKENS))))


def _too_short(tokens: int, packed: int, source: str, documents: int) -> DataError:
    named = f"Text source {source!r}" if source else "The text"
    fewer = ", lower recovery.tokens, or allow recovery.epochs above 1" if packed else " (--text)"
    left = f"there are only {packed}" if packed else "none are left"
    return DataError(
        f"{named} is too short: training needs {tokens} tokens, but {left} ({documents} documents were read; those "
        f"of other purposes are excluded). Give more text{fewer}."
    )
