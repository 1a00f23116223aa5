"""The output folder of a run: claimed, locked, and left as it was if nothing is finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import KEY, MARKER, READS, STAGES, check_no_link, read_json, write_json
from darwinlm.runtime.errors import ArtifactError, DarwinLMError
from darwinlm.runtime.lock import Lock, hold_folder, is_ours
from darwinlm.runtime.version import VERSION


def claim(folder: Path) -> Lock | None:
    """Lock a new, empty or earlier output folder for all processes; the lock ends with its object or the process.

    Raises ArtifactError if the folder holds something else, BusyError if another run works in it.
    """
    with parallel.agree():
        if parallel.is_main():
            _check(folder)
            return hold_folder(folder)
    return None


@contextmanager
def guarded(stage: Path) -> Iterator[None]:
    """Mark the output folder of a stage as ours; after an error, remove what holds no finished work."""
    folder = stage.parent.parent
    parallel.in_main(mark, folder)
    try:
        yield
    except DarwinLMError:
        if parallel.is_main():
            _tidy(stage)
        raise


def mark(folder: Path) -> None:
    """Mark an output folder as ours. Raises StorageError."""
    write_json(folder / MARKER, {"made_by": "darwinlm", "version": VERSION})


def _tidy(stage: Path) -> None:
    if stage.is_dir() and all(path.name in (KEY, READS) for path in stage.iterdir()):
        shutil.rmtree(stage)
    if stage.parent.is_dir() and not any(stage.parent.iterdir()):
        stage.parent.rmdir()
    folder = stage.parent.parent
    if all(path.name == MARKER or is_ours(path) for path in folder.iterdir()):
        (folder / MARKER).unlink()  # the folder itself is removed with its lock


def _check(folder: Path) -> None:
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file: choose another output folder")
    check_no_link(folder / STAGES)
    if marker.exists():
        content = read_json(marker)
        if not isinstance(content, dict) or content.get("made_by") != "darwinlm":
            raise ArtifactError(f"{marker} was not written by darwinlm: choose another output folder")
    elif folder.exists() and not all(map(is_ours, folder.iterdir())):
        raise ArtifactError(f"{folder} is not empty and not a run of darwinlm: choose a new or empty output folder")
