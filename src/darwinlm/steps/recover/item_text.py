"""Training text of a model that reads texts one by one: sequences of items, in one file."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import MANIFEST, write_json
from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.item_sequences import Filling
from darwinlm.steps.text.packing import document_hash
from darwinlm.steps.text.sequences import TokenSequences

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from darwinlm.steps.text.encoder import ItemEncoder
    from darwinlm.steps.text.samples import Sample


class PackedItems(Dataset[dict[str, "Tensor"]]):
    """Sequences of items, written by `pack_items`. Raises ArtifactError if the file is damaged."""

    def __init__(self, folder: Path) -> None:
        self._tokens = TokenSequences.load(folder).tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, sequence: int) -> dict[str, Tensor]:
        """`input_ids` of a sequence with the marks of its items, [T] int64."""
        return {"input_ids": self._tokens[sequence]}


def pack_items(
    samples: Iterable[Sample],
    folder: Path,
    sequences: int,
    encoder: ItemEncoder,
    *,
    reserved: Collection[str] = (),
    source: str = "",
) -> None:
    """Pack texts and pairs into so many sequences, without those whose query or text is reserved.

    The first process reads and writes; a finished file is kept. Raises StorageError, or DataError if the source is too
    short.
    """

    def write() -> None:
        filling, excluded = Filling(sequences, encoder.length), set(reserved)
        seen: set[str] = set()
        for sample in samples:
            hashed = document_hash(f"{sample.query}\0{sample.text}")
            if hashed in seen or document_hash(sample.key) in excluded:
                continue
            seen.add(hashed)
            filling.put([sample], encoder)
            if filling.full:
                break
        filling.finish()
        if not filling.full:
            raise DataError(
                f"Text source {source!r} is too short: training needs {sequences * encoder.length:,} tokens, but there "
                f"are only {len(filling.rows) * encoder.length:,} in {len(seen):,} texts or pairs that no other step "
                "reads. Give more text, lower recovery.tokens, or allow recovery.epochs above 1."
            )
        filling.sequences(source).save(folder)
        write_json(folder / MANIFEST, sequences)

    with parallel.agree():
        if parallel.is_main() and not (folder / MANIFEST).exists():
            write()
