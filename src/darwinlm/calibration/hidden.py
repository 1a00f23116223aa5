"""The residual stream of some text, a batch at a time: in memory, or above a limit in a file that is mapped into it.

Letters: b sequences of a batch, t tokens, m residual width.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from darwinlm.artifact import storage_error

NUMBERS = itertools.count()
CHUNK = 1 << 24


@dataclass(frozen=True)
class HiddenMemory:
    """How much of a residual stream may stay in memory.

    Attributes:
        limit: bytes; a stream that needs more lies in a file.
        folder: where that file is made; it is gone when the stream is.
    """

    limit: int
    folder: Path


class HiddenStates(Sequence[Tensor]):
    """The residual stream by batch: read one with `hidden[i]`, put its successor in its place with `hidden[i] = x`.

    Args:
        batches: tensors [b, t, m] of one type.
        elements: in all of them together.
        memory: when to use a file; None never does.

    Raises:
        StorageError: the disk has no room for the file.
    """

    def __init__(self, batches: Iterable[Tensor], elements: int, memory: HiddenMemory | None = None) -> None:
        self._held: list[Tensor] = []
        self._mapped: Tensor | None = None
        self._places: list[tuple[int, torch.Size]] = []
        self._device = torch.device("cpu")
        end = 0
        for index, batch in enumerate(batches):
            if index == 0 and memory is not None and elements * batch.element_size() > memory.limit:
                self._mapped = _mapped_file(memory.folder, elements, batch.dtype)
                self._device = batch.device
            if self._mapped is None:
                self._held.append(batch)
            else:
                self._places.append((end, batch.shape))
                end += batch.numel()
                self[index] = batch

    @property
    def in_file(self) -> bool:
        """Whether it lies in a file."""
        return self._mapped is not None

    def __len__(self) -> int:
        return len(self._places) if self._mapped is not None else len(self._held)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._mapped is None:
            return self._held[index]
        start, shape = self._places[index]
        return self._mapped[start : start + math.prod(shape)].view(shape).to(self._device, copy=True)

    def __setitem__(self, index: int | slice, batch: Tensor | Sequence[Tensor]) -> None:
        if isinstance(index, slice):
            for place, one in zip(range(*index.indices(len(self))), batch, strict=True):
                self[place] = one
            return
        assert isinstance(batch, Tensor)
        if self._mapped is None:
            self._held[index] = batch
            return
        start, shape = self._places[index]
        self._mapped[start : start + math.prod(shape)].view(shape).copy_(batch)


def _mapped_file(folder: Path, elements: int, dtype: torch.dtype) -> Tensor:
    """A file of that size as a flat tensor. All of it is allocated at once: a full disk shows here and not later."""
    n_bytes = elements * dtype.itemsize
    path = folder / f".hidden-{os.getpid()}-{next(NUMBERS)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, n_bytes)
            else:
                for start in range(0, n_bytes, CHUNK):
                    stream.write(bytes(min(CHUNK, n_bytes - start)))
        return torch.from_file(str(path), shared=True, size=elements, dtype=dtype)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        path.unlink(missing_ok=True)  # the mapping keeps it alive, and nothing stays behind whatever happens
