"""Large matrices that wait in a file while memory is needed for others."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from darwinlm.artifact import read_tensors, write_tensors

SMALL = 16 << 20
"""Bytes up to which a matrix just stays in memory."""


class Parked:
    """A matrix put aside. One on a GPU stays there.

    Args:
        matrix: any tensor; the caller lets go of it.
        folder: where a file may lie until the matrix is taken back.

    Raises:
        StorageError: the disk is full.
    """

    def __init__(self, matrix: Tensor, folder: Path) -> None:
        self._kept: Tensor | None = None
        self._path = folder / f".parked-{os.getpid()}.tmp"
        if matrix.device.type != "cpu" or matrix.nbytes <= SMALL:
            self._kept = matrix
        else:
            write_tensors(self._path, {"matrix": matrix})

    def read(self) -> Tensor:
        """The matrix; of a file only what is used comes into memory. Raises ArtifactError."""
        return read_tensors(self._path)["matrix"] if self._kept is None else self._kept

    def close(self) -> None:
        """Let go of it."""
        if self._kept is None:
            self._path.unlink()
        self._kept = None
