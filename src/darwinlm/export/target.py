"""Where an export is written, and what may not be overwritten."""

from __future__ import annotations

from pathlib import Path

from darwinlm.runtime.errors import ExportError
from darwinlm.runtime.lock import hold_target
from darwinlm.runtime.places import check_output


def check_target(path: Path, *sources: Path | None, folder: bool, overwrite: bool) -> None:
    """Refuse a target that would overwrite something.

    Raises:
        ArtifactError: The target is the source, holds it or is a file of it.
        ExportError: The target exists, or is of the wrong kind.
        BusyError: Another process is writing it.
    """
    check_output(path, "--out", sources, resumed=not folder)
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
