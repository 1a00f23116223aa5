"""Copies between a GPU and main memory that overlap with computation.

All copies of one mover are ordered on a separate stream, so reads come after earlier writes. Batches from or to a file
are copied through pinned memory by a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import DeviceMemoryError, first_line

MOST_WAITING = 2
"""Maximum number of pending batches to a file; the next one waits."""

Arriving = tuple[Tensor, torch.cuda.Event]
"""A tensor that is being copied to the device, and the event of its arrival."""


class Mover:
    """Copies batches between a GPU and pinned memory, or a mapped file (`through_file`), which can't be pinned."""

    def __init__(self, device: torch.device, *, through_file: bool) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._thread: ThreadPoolExecutor | None = None
        if through_file:  # a new thread's GPU is the first one, where it would take memory
            self._thread = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))
        self._waiting: deque[Future[None]] = deque()

    def fetch(self, host: Tensor) -> Arriving | Future[Arriving]:
        """Begin to copy a batch to the device."""
        return (
            self._up(host)
            if self._thread is None
            else self._thread.submit(lambda: self._up(pinned_like(host).copy_(host)))
        )

    def fetch_all(self, read: Callable[[], dict[str, Tensor]]) -> Future[dict[str, Arriving]]:
        """Begin to read tensors by name in the mover's thread, and to copy them to the device."""
        assert self._thread is not None
        return self._thread.submit(
            lambda: {name: self._up(pinned_like(host).copy_(host)) for name, host in read().items()}
        )

    def take(self, coming: Arriving | Future[Arriving]) -> Tensor:
        """The batch of a copy that `fetch` began; later work of the current stream waits for it."""
        tensor, copied = coming.result() if isinstance(coming, Future) else coming
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(copied)
        tensor.record_stream(stream)
        return tensor

    def store(self, batch: Tensor, host: Tensor) -> None:
        """Begin to copy a batch to its place on the host; the caller may release it at once."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        if self._thread is None:
            self._down(batch, host)
            return
        between = pinned_like(host)
        copied = self._down(batch, between)
        while len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, between, copied, host))

    def _up(self, host: Tensor) -> Arriving:
        with torch.cuda.stream(self._stream):
            tensor = host.to(self._device, non_blocking=True, copy=True)
            return tensor, self._stream.record_event()

    def _down(self, batch: Tensor, host: Tensor) -> torch.cuda.Event:
        with torch.cuda.stream(self._stream):
            host.copy_(batch, non_blocking=True)
            batch.record_stream(self._stream)
            copied: torch.cuda.Event = self._stream.record_event()
        return copied

    def _write(self, between: Tensor, copied: torch.cuda.Event, mapped: Tensor) -> None:
        copied.synchronize()
        mapped.copy_(between)


def pinned_like(tensor: Tensor) -> Tensor:
    """Pinned memory in the shape and type of a tensor. Raises DeviceMemoryError if there is no room for it."""
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError as error:
        raise DeviceMemoryError(
            f"can't pin {size(tensor.nbytes)} of main memory for copies to the GPU ({first_line(error)}): free main "
            "memory or raise the limit of locked memory (ulimit -l), then rerun the same command; finished work is kept"
        ) from error


def pinned_bytes(wanted: int) -> int:
    """Bytes that PyTorch's allocator of pinned memory uses for so many; it rounds up to a power of two."""
    return 1 << (wanted - 1).bit_length() if wanted else 0
