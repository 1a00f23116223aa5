"""The residual stream of some text in batches: on the device, in main memory, or in a file, depending on free memory.

A GPU's batches in main memory are fetched and stored while other batches are processed (`transfers.py`).

Letters: b sequences of a batch, t tokens, m residual width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from darwinlm.model.walk.transfers import Arriving, Mover, pinned_like
from darwinlm.runtime.mapped import mapped_file
from darwinlm.runtime.memory import CPU, memory_of

STREAMS = 2 << 30
"""Bytes of residual streams that a plan counts as device memory, and that caches leave free."""

Storage = Literal["device", "host", "file"]
"""Memory of the batches' device, main memory, or a file."""


@dataclass(frozen=True)
class HiddenMemory:
    """Where a residual stream may be stored.

    Attributes:
        folder: Folder for a file if memory is full; the file is deleted with the stream.
        storage: Fixed storage; None selects the first of device, host and file with room.
    """

    folder: Path
    storage: Storage | None = None

    def choose(self, device: torch.device, elements: int, batch: Tensor) -> Storage:
        """The storage for a stream of `elements` numbers, in batches [b, t, m] of the type of `batch`."""
        if self.storage is not None:
            return self.storage
        size = elements * batch.element_size()
        if size <= memory_of(device).room("streams"):
            return "device"
        return "host" if device.type != "cpu" and size <= memory_of(CPU).room("streams") else "file"


class HiddenStates(Sequence[Tensor]):
    """The residual stream in batches: read one with `hidden[i]`, replace it with `hidden[i] = x`.

    Batches are [b, t, m] of one type, and have `elements` numbers altogether. Without a `memory` the stream stays where
    it was computed.

    Attributes:
        storage: Where the stream is: on the batches' device, in the host's memory, or in a file.

    Raises:
        StorageError: The disk has no room for the file.
    """

    def __init__(self, batches: Iterable[Tensor], elements: int, memory: HiddenMemory | None = None) -> None:
        self.storage: Storage = "device"
        self._held: list[Tensor] = []
        self._device = torch.device("cpu")
        self._mover: Mover | None = None
        self._ahead: tuple[int, Arriving] | None = None
        mapped, end = None, 0
        for index, batch in enumerate(batches):
            if index == 0 and memory is not None:
                self._device = batch.device
                self.storage = memory.choose(batch.device, elements, batch)
                if self.storage == "file":
                    mapped = mapped_file(memory.folder, elements, batch.dtype)
                elif self.storage == "host" and batch.device.type == "cuda":
                    self._mover = Mover(batch.device)
            if self.storage == "device":
                self._held.append(batch)
                continue
            if mapped is not None:
                room = mapped[end : end + batch.numel()].view(batch.shape)
            else:
                room = torch.empty(batch.shape, dtype=batch.dtype) if self._mover is None else pinned_like(batch)
            self._held.append(room)
            end += batch.numel()
            self[index] = batch

    def __len__(self) -> int:
        return len(self._held)

    @property
    def elements(self) -> int:
        """Number of elements in all batches together."""
        return sum(batch.numel() for batch in self._held)

    def copied(self, memory: HiddenMemory | None) -> HiddenStates:
        """The current stream in the storage that `memory` allows; tensors that don't move aren't copied."""
        return HiddenStates(iter(self), self.elements, memory)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        index = range(len(self))[index]
        if self.storage == "device":
            return self._held[index]
        if self._mover is None:
            return self._held[index].to(self._device, copy=True)
        ahead, self._ahead = self._ahead, None
        arriving = ahead[1] if ahead is not None and ahead[0] == index else self._mover.fetch(self._held[index])
        batch = self._mover.take(arriving)
        if index + 1 < len(self):
            self._ahead = index + 1, self._mover.fetch(self._held[index + 1])
        return batch

    def __setitem__(self, index: int, batch: Tensor) -> None:
        index = range(len(self))[index]
        if self.storage == "device":
            self._held[index] = batch
        elif self._mover is None:
            self._held[index].copy_(batch)
        else:
            if self._ahead is not None and self._ahead[0] == index:
                self._ahead = None
            self._mover.store(batch, self._held[index])
