"""Copies between a GPU and pinned memory that overlap with computation.

All copies of one mover are ordered on a separate stream, so reads come after earlier writes.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import DeviceMemoryError, first_line

Arriving = tuple[Tensor, torch.cuda.Event]
"""A tensor that is being copied to the device, and the event of its arrival."""


class Mover:
    """Copies tensors between a GPU and pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def fetch(self, host: Tensor) -> Arriving:
        """Begin to copy a tensor to the device."""
        with torch.cuda.stream(self._stream):
            tensor = host.to(self._device, non_blocking=True, copy=True)
            return tensor, self._stream.record_event()

    def take(self, arriving: Arriving) -> Tensor:
        """The tensor of a copy that `fetch` began; later work of the current stream waits for it."""
        tensor, copied = arriving
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(copied)
        tensor.record_stream(stream)
        return tensor

    def store(self, tensor: Tensor, host: Tensor) -> None:
        """Begin to copy a tensor to its place on the host; the caller may release it at once."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._stream)


def pinned_like(tensor: Tensor) -> Tensor:
    """Pinned memory in the shape and type of a tensor. Raises DeviceMemoryError if there is no room for it."""
    return pinned(tuple(tensor.shape), tensor.dtype)


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Pinned memory for a tensor. Raises DeviceMemoryError if there is no room for it."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        needed = size(prod(shape) * dtype.itemsize)
        raise DeviceMemoryError(
            f"can't pin {needed} of main memory for copies to the GPU ({first_line(error)}): free main "
            "memory or raise the limit of locked memory (ulimit -l), then rerun the same command; finished work is kept"
        ) from error
