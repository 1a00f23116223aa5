"""Paths that Python code gives: as text or as `pathlib.Path`."""

from __future__ import annotations

import os
from pathlib import Path

from darwinlm.runtime.errors import ArtifactError


def output_folder(out: str | Path) -> Path:
    """The folder of a run. Raises ArtifactError if it is none, such as None."""
    if not isinstance(out, str | os.PathLike) or not os.fspath(out):
        raise ArtifactError(f"out is {out!r}: give the folder to write to")
    return Path(out).expanduser()
