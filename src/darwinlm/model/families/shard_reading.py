"""Read tensors of a shard into memory that the caller chooses, such as pinned memory, without Python's lock.

safetensors reads into memory of its own while it holds the lock. Here the system writes into the tensor itself, and
other threads go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor of a shape and element type, whose numbers don't matter."""

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Element types by their names in safetensors."""
LENGTH = 8
"""Bytes of the length of a header."""
AT_ONCE = 1 << 30
"""Bytes that the system is asked for at once; it gives at most two gigabytes."""


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in a shard: its first byte, element type and shape."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A new tensor in main memory."""
    return torch.empty(shape, dtype=dtype)


def spans(shard: Path) -> dict[str, Span]:
    """The tensors of a shard whose header safetensors has accepted; those of other types are left out."""
    with shard.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH), "little")
        header = json.loads(stream.read(length))
    return {
        name: Span(LENGTH + length + entry["data_offsets"][0], TYPES[entry["dtype"]], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] in TYPES
    }


def read_spans(shard: Path, wanted: Iterable[tuple[str, Span]], empty: Empty) -> dict[str, Tensor]:
    """Read tensors into what `empty` makes. Raises OSError, also if the shard ends before a tensor does."""
    tensors: dict[str, Tensor] = {}
    descriptor = os.open(shard, os.O_RDONLY)
    try:
        for name, span in wanted:
            tensors[name] = empty(span.shape, span.dtype)
            if prod(span.shape):
                _fill(descriptor, tensors[name], span.start)
    finally:
        os.close(descriptor)
    return tensors


def _fill(descriptor: int, tensor: Tensor, start: int) -> None:
    memory = tensor.reshape(-1).view(torch.uint8).numpy().data
    done = 0
    while done < len(memory):
        count = os.preadv(descriptor, [memory[done : done + AT_ONCE]], start + done)
        if not count:
            raise OSError(f"it ends at byte {start + done:,}, before its last tensor")
        done += count
