"""Folders that are created and removed: paths of any depth, and no target of a link."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from pathlib import Path


def make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents; returns the created ones, the innermost first. Raises OSError.

    `Path.mkdir` and `os.makedirs` call themselves for each parent, and a path may have more than Python's calls.
    """
    missing = list(itertools.takewhile(lambda parent: not parent.exists(), (folder, *folder.parents)))
    for parent in reversed(missing or [folder]):
        parent.mkdir(exist_ok=True)
    return missing


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link and not its target, if there is one and it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
