"""Input of an export: a model folder, or the output folder of a finished run."""

from __future__ import annotations

from pathlib import Path

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.artifact import model_folder
from darwinlm.runtime.errors import ExportError, ModelError
from darwinlm.runtime.lock import hold_target


def open_source(path: Path, *, allow_remote_code: bool = False) -> Checkpoint:
    """Open a model folder, or the model in a run's output folder.

    Raises:
        ModelError: There is no such folder, it holds no model, or its run isn't finished.
        CheckpointError: Its files are damaged.
        FamilyError: Its architecture isn't known.
    """
    if not path.exists():
        raise ModelError(f"there is no model at '{path}': give the folder of a model or of a finished run")
    if path.is_file():
        raise ModelError(f"{path} is a file: give the folder of a model or of a finished run")
    return Checkpoint.open(model_folder(path), allow_remote_code=allow_remote_code)


def check_target(path: Path, source: Path, *, folder: bool, overwrite: bool) -> None:
    """Refuse a target that would overwrite something.

    Raises:
        ExportError: The target exists, is the source, or is of the wrong kind.
        BusyError: Another process is writing it.
    """
    if path.resolve() == source.resolve() or path.resolve() in source.resolve().parents:
        raise ExportError(f"--out {path} is the folder of the model itself: choose another path")
    if folder and path.is_file():
        raise ExportError(f"--out {path} is a file: this format needs a folder")
    if not folder and path.is_dir():
        raise ExportError(f"--out {path} is a folder: this format is one file, such as {path / 'model.gguf'}")
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not overwrite:
        hold_target(path).release()  # removes leftover files of a process that was killed at its very end
        raise ExportError(f"--out {path} exists: choose another path, or pass --overwrite to replace it")
    if occupied and folder and not (path / "config.json").is_file():
        raise ExportError(f"--out {path} exists and is not a model: choose another path")
