"""Write safetensors tensor by tensor, so that memory holds one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from darwinlm.runtime.artifact import write_atomically

if TYPE_CHECKING:
    from io import BufferedWriter

ALIGNMENT = 8
"""Bytes of which the length of a header is a multiple."""


def write_float32(
    path: Path, shapes: Mapping[str, tuple[int, ...]], parts: Callable[[str], Iterable[torch.Tensor]]
) -> None:
    """Write tensors in float32 atomically, with the very bytes that `safetensors.torch.save_file` would write.

    Args:
        path: The file.
        shapes: Shapes of the tensors by name.
        parts: Gives a tensor by its name in float32, in consecutive pieces of its rows.

    Raises StorageError, and what `parts` raises.
    """
    names = sorted(shapes)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + prod(shapes[name]) * torch.float32.itemsize
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)

    def write(to: Path) -> None:
        with to.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little"))
            stream.write(text)
            for name in names:
                _write_parts(stream, parts(name), prod(shapes[name]), name)

    write_atomically(path, write)


def _write_parts(stream: BufferedWriter, parts: Iterable[torch.Tensor], weights: int, name: str) -> None:
    written = 0
    for part in parts:
        assert part.dtype == torch.float32, f"{name} is in float32"
        part.contiguous().numpy().tofile(stream)
        written += part.numel()
    assert written == weights, f"{name} has its shape"
