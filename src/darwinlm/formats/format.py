"""Formats of stored models behind four verbs: read, write, predict and check.

`formats/all_formats.py` lists the formats. Models for mlx-lm and vLLM are folders of transformers, and so no formats of
their own: mlx-lm needs a file that `transformers/saved.py` adds, and vLLM a plugin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from darwinlm.formats.inputs import Inputs
from darwinlm.formats.logits_check import ExportReport
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.layer_sizes import BlockSizes
from darwinlm.runtime.errors import ExportError
from darwinlm.runtime.lock import hold_target
from darwinlm.runtime.places import check_output

Say = Callable[[str], None]
"""Tells the user what is being done."""


def silent(_: str) -> None:
    """Tell nothing."""


@dataclass(frozen=True)
class WriteOptions:
    """How a model is written.

    Attributes:
        quantisation: One of the format's `types`; empty for that of the model's own weights, or its default.
        tokenizer_from: A GGUF file whose tokenizer is copied.
        unchecked: Whether the check in the engine is left out.
        inputs: Inputs of a model that reads, with which it is checked.
    """

    quantisation: str = ""
    tokenizer_from: Path | None = None
    unchecked: bool = False
    inputs: Inputs | None = None


DEFAULT = WriteOptions()


class Format(ABC):
    """One format.

    Attributes:
        name: Its name in the registry and in reports.
        title: What is written, for messages: `a GGUF file`.
        folder: Whether a model is a folder, not a file.
        types: Types of weights that it writes, by name; empty if it keeps those of the model.
        converts: Whether reading a model converts it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    folder: ClassVar[bool]
    types: ClassVar[tuple[str, ...]] = ()
    converts: ClassVar[bool] = False

    @abstractmethod
    def holds(self, path: Path) -> bool:
        """Whether an existing path looks like a model in this format, by its kind and name."""

    @abstractmethod
    def wrote(self, path: Path) -> bool:
        """Whether an existing path is a model in this format by its contents, so that another may replace it."""

    @abstractmethod
    def describe(self, path: Path, source: str) -> Checkpoint:
        """A model's configuration without its weights.

        `source` is the name that the user gave it. Raises ModelError, CheckpointError, FamilyError.
        """

    @abstractmethod
    def read(self, path: Path, source: str, work: Path, say: Say = silent) -> Checkpoint:
        """A model as a checkpoint; what has to be converted is written to the folder `work`.

        `source` is the name that the user gave it. Raises as `describe`, and MissingExtraError and StorageError.
        """

    def memory_to_read(self, path: Path) -> float:
        """Bytes of main memory that `read` takes beyond that of a checkpoint. Raises CheckpointError."""
        del path
        return 0.0

    @abstractmethod
    def write(
        self, checkpoint: Checkpoint, out: Path, options: WriteOptions = DEFAULT, say: Say = silent
    ) -> ExportReport:
        """Write a model and check it; it appears by rename after the check, with a report next to it or inside.

        Raises:
            ExportError: The format can't hold the model, or the check fails.
            MissingExtraError: A required package isn't installed.
            StorageError: The disk is full.
        """

    @abstractmethod
    def refusal(self, checkpoint: Checkpoint, sizes: Sequence[BlockSizes] | None = None) -> str | None:
        """Why the format can't hold a model, as a clause; None if it can.

        With `sizes`, the model is one with these blocks, of which only the configuration need exist.
        """

    @abstractmethod
    def predict(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Bytes of a written model by the type of its weights, the largest first; empty if it can't be written."""

    def largest(self, checkpoint: Checkpoint, bound: int) -> tuple[str, int] | None:
        """The type of the largest written model within a bound in bytes, and its predicted size; None if none is."""
        return next((size for size in self.predict(checkpoint).items() if size[1] <= bound), None)

    @abstractmethod
    def check(self, checkpoint: Checkpoint, path: Path, inputs: Inputs | None = None) -> ExportReport:
        """Run a written model in its engine and compare it with the model; one that reads, on these inputs.

        Raises ExportError or CheckpointError if it differs, MissingExtraError without the engine.
        """


def check_target(kind: Format, path: Path, *sources: Path | None, overwrite: bool = False) -> None:
    """Refuse a target for a format that would overwrite something.

    Raises:
        ArtifactError: The target is the source, holds it or is a file of it.
        ExportError: The target exists, or is of the wrong kind.
        BusyError: Another process is writing it.
    """
    check_output(path, sources, resumed=not kind.folder)
    if kind.folder and path.is_file():
        raise ExportError(f"--out {path} is a file: this format needs a folder")
    if not kind.folder and path.is_dir():
        raise ExportError(f"--out {path} is a folder: this format is one file, such as {path / f'model.{kind.name}'}")
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not overwrite:
        hold_target(path).release()  # removes leftover files of a process that was killed at its very end
        raise ExportError(f"--out {path} exists: choose another path, or pass --overwrite to replace it")
    if occupied and not kind.wrote(path):
        raise ExportError(f"--out {path} exists and is not {kind.title}: choose another path")
