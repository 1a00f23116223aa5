"""GGUF files behind the four verbs of formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from darwinlm.formats.format import DEFAULT, Format, Say, WriteOptions, silent
from darwinlm.formats.gguf.checked_file import check_gguf, export_gguf
from darwinlm.formats.gguf.file_sizes import predicted_sizes
from darwinlm.formats.gguf.read import conversion_bytes, dequantise, describe_gguf
from darwinlm.formats.gguf.rope import UnsupportedError
from darwinlm.formats.gguf.stock_layout import choose_layout
from darwinlm.formats.inputs import Inputs
from darwinlm.formats.logits_check import ExportReport
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.layer_sizes import BlockSizes
from darwinlm.model.quantisation import WRITTEN
from darwinlm.model.surgery.reshape import Reshaper

SUFFIX = ".gguf"


class Gguf(Format):
    """One file for llama.cpp."""

    name: ClassVar[str] = "gguf"
    title: ClassVar[str] = "a GGUF file"
    folder: ClassVar[bool] = False
    types: ClassVar[tuple[str, ...]] = WRITTEN
    converts: ClassVar[bool] = True

    def holds(self, path: Path) -> bool:
        """Whether a path is a file with the suffix of GGUF."""
        return path.suffix == SUFFIX and path.is_file()

    def wrote(self, path: Path) -> bool:
        """Whether a file begins as GGUF files do."""
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"

    def describe(self, path: Path, source: str) -> Checkpoint:
        """A model's configuration and tokenizer, from the file's header."""
        del source  # a file is named by its path
        return describe_gguf(path)

    def read(self, path: Path, source: str, work: Path, say: Say = silent) -> Checkpoint:
        """The model, dequantised into the folder `work` unless it already is."""
        return Checkpoint.open(dequantise(path, work, say), source)

    def memory_to_read(self, path: Path) -> float:
        """Bytes that the largest tensor takes in float32."""
        return conversion_bytes(path)

    def write(
        self, checkpoint: Checkpoint, out: Path, options: WriteOptions = DEFAULT, say: Say = silent
    ) -> ExportReport:
        """Write a file and check it in llama.cpp; the report is written next to it, as `.export.json`."""
        return export_gguf(
            checkpoint,
            out,
            quantisation=options.quantisation or "f16",
            tokenizer_from=options.tokenizer_from,
            unchecked=options.unchecked,
            inputs=options.inputs,
            say=say,
        )

    def refusal(self, checkpoint: Checkpoint, sizes: Sequence[BlockSizes] | None = None) -> str | None:
        """Why no architecture of llama.cpp holds a model with such blocks."""
        try:
            choose_layout(Reshaper(checkpoint, sizes))
        except UnsupportedError as error:
            return error.reason
        return None

    def predict(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Bytes of a file by quantisation; empty as well if llama.cpp has no tokenizer of the model's kind."""
        return predicted_sizes(checkpoint)

    def check(self, checkpoint: Checkpoint, path: Path, inputs: Inputs | None = None) -> ExportReport:
        """Compare a file's tensors with the model's, and their outputs in llama.cpp."""
        return check_gguf(checkpoint, path, inputs)


GGUF = Gguf()
