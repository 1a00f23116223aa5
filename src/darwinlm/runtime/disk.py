"""Disk space of runs: what a run writes into its output folder by its plan, and what the disk still lacks for it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import tell_when_full

_PLANNED: dict[Path, float] = {}
"""Bytes that runs of this process write at most, by output folder."""


def expect(folder: Path, n_bytes: float) -> None:
    """Note that a run writes at most `n_bytes` into an output folder, temporary files included."""
    _PLANNED[_real(folder)] = n_bytes


def lacking(folder: Path) -> float:
    """Bytes that the disk of a run's output folder lacks for what the run has yet to write; 0 if there is room."""
    needed = _PLANNED.get(_real(folder), 0.0) - _written(folder)
    return max(needed - free_bytes(folder), 0.0)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk on which a folder is or will be."""
    return shutil.disk_usage(next(parent for parent in (_real(folder), *_real(folder).parents) if parent.exists())).free


def how_much(path: Path) -> str:
    """How much space to free, for the message about a file of a run that a full disk refused."""
    real = _real(path)
    folder = next((parent for parent in real.parents if parent in _PLANNED), None)
    if folder is None:
        return "free some space"
    with contextlib.suppress(OSError):
        if lack := lacking(folder):
            return f"this run takes up to {size(_PLANNED[folder])} in all: free about {size(lack)}"
    return f"free some space; this run takes up to {size(_PLANNED[folder])} in all"


def _written(folder: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a file that has just been removed
                total += (Path(parent) / name).lstat().st_size
    return total


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


tell_when_full(how_much)
