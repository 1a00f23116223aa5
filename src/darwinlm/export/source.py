"""Input of an export: a model folder, or the output folder of a finished run."""

from __future__ import annotations

from pathlib import Path

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.models.resolve import resolve_model
from darwinlm.runtime.artifact import model_folder
from darwinlm.runtime.errors import ExportError, ModelError
from darwinlm.runtime.lock import hold_target
from darwinlm.runtime.places import check_output


def open_source(path: Path, work: Path | None = None, *, allow_remote_code: bool = False) -> Checkpoint:
    """Open a model folder, the model in a run's output folder, or with a folder `work` also a GGUF file or a hub id.

    Files of a converted model go to `work`.

    Raises:
        ModelError: There is no such model, or its run isn't finished.
        CheckpointError: Its files are damaged.
        FamilyError: Its architecture isn't known.
        MissingExtraError: A GGUF file without the extra `gguf`.
    """
    if path.is_dir():
        return Checkpoint.open(model_folder(path), allow_remote_code=allow_remote_code)
    if work is not None:
        return resolve_model(str(path), work, allow_remote_code=allow_remote_code)
    if path.exists():
        raise ModelError(f"{path} is a file: give the folder of a model or of a finished run")
    raise ModelError(f"there is no model at '{path}': give the folder of a model or of a finished run")


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
