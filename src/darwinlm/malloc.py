"""Keep memory that training frees on a CPU in the process, instead of returning it to the system.

glibc returns every freed allocation above 32 MB to the system, and the next one needs new pages, which the system fills
with zeros. A training step frees and allocates gigabytes of activations and logits. `benchmarks/malloc.py` measures the
cost.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_ALWAYS = 2**31 - 1
_MOST_DYNAMIC = 32 << 20
"""Upper end of glibc's dynamic threshold, which stops adapting once it is set explicitly."""


_kept = False


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory while the body runs, then return it. Nested uses belong to the outer one.

    It does nothing on a GPU or without glibc.
    """
    global _kept  # noqa: PLW0603 - as mallopt's own settings, it is the process's
    library = _glibc() if device.type == "cpu" else None
    if library is None or _kept:
        yield
        return
    _set(library, _ALWAYS, _ALWAYS)
    _kept = True
    try:
        yield
    finally:
        _kept = False
        _set(library, _MOST_DYNAMIC, 2 * _MOST_DYNAMIC)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, mapped: int, trimmed: int) -> None:
    library.mallopt(_M_MMAP_THRESHOLD, mapped)
    library.mallopt(_M_TRIM_THRESHOLD, trimmed)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
