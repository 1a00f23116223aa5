"""Tensors in mapped files: the system writes their pages out if memory is short, and nothing remains after a crash."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.runtime.errors import storage_error

CHUNK = 1 << 24


def mapped_file(folder: Path, elements: int, dtype: torch.dtype) -> Tensor:
    """A new file as a flat tensor. All of it is allocated at once, so that a full disk is detected here.

    Raises StorageError.
    """
    n_bytes = elements * dtype.itemsize
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A random name: processes of several containers can have one number and share a folder.
        descriptor, name = tempfile.mkstemp(f".{os.getpid()}.tmp", ".mapped-", folder)
        path = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, n_bytes)
            else:
                for start in range(0, n_bytes, CHUNK):
                    stream.write(bytes(min(CHUNK, n_bytes - start)))
        return torch.from_file(str(path), shared=True, size=elements, dtype=dtype)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if path != folder:
            path.unlink(missing_ok=True)  # the mapping keeps it alive


def in_file(tensor: Tensor, folder: Path) -> Tensor:
    """A copy of a tensor in a mapped file. Raises StorageError."""
    if not tensor.numel():
        return tensor
    return mapped_file(folder, tensor.numel(), tensor.dtype).view(tensor.shape).copy_(tensor)
