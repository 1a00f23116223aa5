"""Entry point of the export, for Python and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from darwinlm.formats.gguf.checked_file import export_gguf
from darwinlm.formats.logits_check import ExportReport
from darwinlm.formats.resolve import resolve_finished
from darwinlm.runtime.artifact import fresh_folder
from darwinlm.runtime.errors import ExportError
from darwinlm.runtime.lock import hold_target
from darwinlm.runtime.places import check_output


def export_model(
    model: Path,
    out: Path,
    *,
    quantisation: str = "f16",
    tokenizer_from: Path | None = None,
    unchecked: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> ExportReport:
    """Write a model or a finished run as a GGUF file, and check it. A failed export leaves no files.

    `model` is a folder, a GGUF file or a hub id. The report is saved beside the file `out`. `tokenizer_from` is a GGUF
    file whose tokenizer is copied. `unchecked` leaves out the check in llama.cpp.

    Raises:
        ModelError, ExportError, MissingExtraError, StorageError, BusyError: See `darwinlm.runtime.errors`.
    """
    if tokenizer_from is not None and not tokenizer_from.is_file():
        raise ExportError(f"--tokenizer-from {tokenizer_from}: there is no such file")
    check_target(out, None, model, tokenizer_from, folder=False, overwrite=overwrite)
    beside = next(each for each in out.absolute().parents if each.is_dir()) / f".{out.name}.work"
    with hold_target(out), fresh_folder(beside) as work:
        checkpoint = resolve_finished(str(model), work)
        check_target(out, checkpoint.folder, folder=False, overwrite=overwrite)
        return export_gguf(
            checkpoint,
            out,
            quantisation=quantisation,
            tokenizer_from=tokenizer_from or (model if model.suffix == ".gguf" and model.is_file() else None),
            unchecked=unchecked,
            say=say,
        )


def check_target(path: Path, *sources: Path | None, folder: bool, overwrite: bool) -> None:
    """Refuse a target that would overwrite something.

    Raises:
        ArtifactError: The target is the source, holds it or is a file of it.
        ExportError: The target exists, or is of the wrong kind.
        BusyError: Another process is writing it.
    """
    check_output(path, sources, resumed=not folder)
    if folder and path.is_file():
        raise ExportError(f"--out {path} is a file: this format needs a folder")
    if not folder and path.is_dir():
        raise ExportError(f"--out {path} is a folder: this format is one file, such as {path / 'model.gguf'}")
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not overwrite:
        hold_target(path).release()  # removes leftover files of a process that was killed at its very end
        raise ExportError(f"--out {path} exists: choose another path, or pass --overwrite to replace it")
    marked = (path / "config.json").is_file() if folder else not occupied or _is_gguf(path)
    if occupied and not marked:
        raise ExportError(
            f"--out {path} exists and is not {'a model' if folder else 'a GGUF file'}: choose another path"
        )


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"GGUF"
