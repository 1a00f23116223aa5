"""Folders that are created and removed: paths of any depth, and no target of a link."""

from __future__ import annotations

import contextlib
import itertools
import os
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


def remove_deep(folder: Path) -> None:
    """Remove a folder as far as it can be, also if its folders are nested deeper than paths and calls can be.

    `shutil.rmtree` calls itself for each level. Here, folders are moved up beside each other before they are emptied.
    """
    numbers = itertools.count()
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        with contextlib.suppress(OSError):
            inside.chmod(0o700)
            for entry in list(os.scandir(inside)):
                if entry.is_dir(follow_symlinks=False):
                    Path(entry.path).chmod(0o700)
                    waiting.append(Path(entry.path).rename(folder.with_name(f"{folder.name}-{next(numbers)}")))
                else:
                    Path(entry.path).unlink()
            inside.rmdir()
