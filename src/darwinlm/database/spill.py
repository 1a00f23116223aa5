"""Large matrices that are moved to files while memory is needed for others."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from darwinlm.artifact import damaged, write_tensors
from darwinlm.database.elimination import ROWS

SMALL = 16 << 20
"""Maximum bytes of a matrix that stays in memory."""

NUMBERS = itertools.count()


class Spilled:
    """A matrix, or several of one size, in a file until the end of a `with` block. GPU matrices stay on the GPU.

    The matrix is [d, d] or [e, d, d]; the caller should drop it. The temporary file is in `folder`. Raises StorageError
    if the disk is full.
    """

    def __init__(self, matrix: Tensor, folder: Path) -> None:
        self._kept: Tensor | None = None
        self._path = folder / f".spilled-{os.getpid()}-{next(NUMBERS)}.tmp"
        self._size = matrix.shape[-1]
        if matrix.device.type != "cpu" or matrix.nbytes <= SMALL:
            self._kept = matrix
        else:
            write_tensors(self._path, {"matrix": matrix})

    def __enter__(self) -> Spilled:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept is None:
            self._path.unlink(missing_ok=True)
        self._kept = None

    def read(self, place: int | slice = slice(None)) -> Tensor:
        """The whole matrix, or an index of its first dimension. Raises ArtifactError."""
        if self._kept is not None:
            return self._kept[place]
        try:
            with safe_open(self._path, framework="pt") as stream:
                part: Tensor = stream.get_slice("matrix")[place]
        except (OSError, SafetensorError) as error:
            raise damaged(self._path, str(error)) from error
        return part

    def rows(self) -> Iterator[Tensor]:
        """Consecutive groups of rows; only these are loaded from a file. Raises ArtifactError."""
        for start in range(0, self._size, ROWS):
            yield self.read(slice(start, min(start + ROWS, self._size)))
