"""Write safetensors tensor by tensor, so that memory holds one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

import torch

from darwinlm.runtime.artifact import new_hash, note_digest, write_atomically

ALIGNMENT = 8
"""Bytes of which the length of a header is a multiple."""


def write_float32(
    path: Path, shapes: Mapping[str, tuple[int, ...]], parts: Callable[[str], Iterable[torch.Tensor]]
) -> None:
    """Write tensors in float32 atomically, with the very bytes that `safetensors.torch.save_file` would write.

    The file's hash is noted meanwhile, so that a large file isn't read for it.

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

    hashed = new_hash()

    def write(to: Path) -> None:
        with to.open("wb") as stream:
            for part in (len(text).to_bytes(8, "little"), text):
                stream.write(part)
                hashed.update(part)
            for name in names:
                written = 0
                for tensor in parts(name):
                    assert tensor.dtype == torch.float32, f"{name} is in float32"
                    if tensor.numel():
                        numbers = tensor.contiguous().reshape(-1).numpy().data.cast("B")
                        stream.write(numbers)
                        hashed.update(numbers)
                    written += tensor.numel()
                expected = prod(shapes[name])
                assert written == expected, f"{name} has its shape"

    write_atomically(path, write)
    note_digest(path, hashed.hexdigest())
