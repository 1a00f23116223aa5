"""Memory of the machine: how much is free, who gets it, caches of that size, and memory that training keeps."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import resource
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, ParamSpec, Protocol, TypeVar

import torch

from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import DarwinLMError, RecipeError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")
P = ParamSpec("P")


class Halvable(Protocol):
    """A cache that can give back half of its memory."""

    def halve(self) -> None:
        """Keep half of what was allowed."""


C = TypeVar("C", bound=Halvable)

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
STATUS = Path("/proc/self/status")


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device for this process; on a CPU, its share of the machine's available memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return max(min(all_bytes(device) - torch.mps.current_allocated_memory(), free_host_bytes()), 0)
    return free_host_bytes()


def free_host_bytes() -> int:
    """Free bytes of main memory for this process; processes of a run share it equally."""
    limits = [n_bytes for n_bytes in (_available(MEMINFO), _within_limit(CGROUP)) if n_bytes is not None]
    return min(limits, default=all_bytes(torch.device("cpu")) // 2) // parallel.local_size()


def taken_bytes(device: torch.device) -> int:
    """Bytes of a device that this process holds; on a CPU, memory that the system can't take back by itself."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    for line in STATUS.read_text(errors="replace").splitlines() if STATUS.is_file() else ():
        if line.startswith("RssAnon:"):  # some sandboxes have none
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def all_bytes(device: torch.device) -> int:
    """Bytes of all memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "mps":  # its share of the machine's memory
        return int(torch.mps.recommended_max_memory())
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device's memory is full; Apple's has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or str(error).startswith("MPS backend out of memory")


def _available(meminfo: Path) -> int | None:
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _within_limit(cgroup: Path) -> int | None:
    """Free memory within a container's limit; reclaimable file pages don't count as used."""
    limit, in_use, stat = (cgroup / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not (limit.is_file() and in_use.is_file() and stat.is_file()):
        return None
    limit_text = limit.read_text(encoding="ascii").strip()
    if limit_text == "max":
        return None
    counts = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines())
    return max(int(limit_text) - int(in_use.read_text(encoding="ascii")) + int(counts.get("inactive_file", 0)), 0)


ALL = sys.maxsize
"""Bytes to reserve where nothing is read twice: a cache keeps nothing."""


class Bounded(Generic[K, V]):
    """A cache whose size is a share of the free memory at its first use, or when it last reserved memory for others.

    `size` gives the bytes of a value, `room` those for all values, from the bytes reserved for others. If keys are
    accessed cyclically (`scanned`), the first values stay, and those that don't fit aren't kept; otherwise the least
    recently used values are dropped.
    """

    def __init__(
        self,
        size: Callable[[V], int],
        room: Callable[[int], int],
        *,
        scanned: bool = False,
        dropped: Callable[[K], object] = lambda key: None,
    ) -> None:
        self._dropped = dropped
        self._size = size
        self._room = room
        self._scanned = scanned
        self._limit: int | None = None
        self._held = 0
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, if it is in the cache."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def has_room(self, size: int) -> bool:
        """Whether a value of that size would fit in addition to the others."""
        return self._held + size <= self._most()

    def put(self, key: K, value: V) -> bool:
        """Keep a value if there is room; returns whether it was kept."""
        size, limit = self._size(value), self._most()
        if size > limit or (self._scanned and self._held + size > limit):
            return False
        while self._held + size > limit:
            self._held -= self._size(self._values.popitem(last=False)[1])
        self._values[key] = value
        self._held += size
        return True

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()
        self._held = 0

    def reserve(self, size: int, among: int = 1) -> None:
        """Drop all values, and measure the free memory now, without so many bytes for others.

        The share is divided among so many caches.
        """
        self.clear()
        self._limit = self._room(size) // among

    def halve(self) -> None:
        """Keep half of what was allowed; `dropped` hears of each value that has to go."""
        self._limit = self._most() // 2
        while self._held > self._limit:
            key, value = self._values.popitem(last=self._scanned)
            self._held -= self._size(value)
            self._dropped(key)

    def _most(self) -> int:
        if self._limit is None:
            self._limit = self._room(0)
        return self._limit


CACHES = {"blocks": 0.5, "factors": 0.3, "modules": 0.2}
"""How the caches of a search divide a device's memory for caches: dense blocks that stay, factors of the database, and
pruned modules."""
BESIDE = {"packed factors": 0.6}
"""The share of a GPU's factors in the main memory for caches, from which they are computed."""
WORK = {"streams": 0.25, "candidates": 0.4, "module inputs": 0.2, "keys and values": 0.25, "whole models": 0.5}
"""Shares of the free memory for what work takes if there is room; no two of them are large at once."""

FRAGMENTS, OTHERS = 0.15, 0.5
"""Share of a GPU's free memory that PyTorch's allocator may lose between tensors of different sizes (our estimate), and
share of the free main memory that caches leave to other programs."""


def passed_on(shares: Mapping[str, float], wanted: Mapping[str, float]) -> dict[str, float]:
    """Shares of a whole, of which parts that want less pass the rest on to the others, in proportion to their shares.

    Both are given by part as fractions of the whole.
    """
    given: dict[str, float] = {}
    while True:
        left, among = sum(shares.values()) - sum(given.values()), sum(shares[part] for part in shares.keys() - given)
        offered = {part: left * shares[part] / among if among else 0.0 for part in shares.keys() - given}
        content = {part: wanted[part] for part, size in offered.items() if wanted[part] <= size}
        if not content:
            return given | offered
        given |= content


class _MemoryFullError(DarwinLMError):
    """The memory of a process's device is full, and its caches may be halved."""


HALVINGS = 6
"""How often caches are halved; then memory is full without them."""


class DeviceMemory:
    """Hands out a device's memory to caches and buffers, and takes half of the caches' back when the device is full.

    Attributes:
        limit: Bytes that this process may take of it; None without a limit.
        needs: Bytes that the work of each stage takes by its plan, which caches leave free.
        stage: The present stage.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.limit: int | None = None
        self.needs: Mapping[str, float] = {}
        self.stage = ""
        self._halvings = 0
        self._divided: tuple[str, Mapping[str, float]] = "", CACHES
        self._caches: weakref.WeakSet[Halvable] = weakref.WeakSet()

    @property
    def allowed(self) -> float:
        """Bytes that the limit leaves to this process."""
        return math.inf if self.limit is None else self.limit - taken_bytes(self.device)

    @property
    def free(self) -> int:
        """Bytes that this process may still take."""
        return int(max(min(free_bytes(self.device), self.allowed), 0))

    def room(self, part: str, reserved: int = 0) -> int:
        """Bytes for a part of `CACHES` or `BESIDE`, which leave free what is `reserved` for others, or of `WORK`."""
        if _keeper is not None:
            _keeper.malloc_trim(0)  # what is kept isn't taken
        if part in WORK:
            return int(WORK[part] * self.free)
        unused, needs = free_bytes(self.device), max(self.needs.get(self.stage, 0), reserved)
        available = min(unused, self.allowed)
        room = (1 - FRAGMENTS) * available - needs
        if self.device.type != "cuda":  # others keep a share of what is free, and nothing of what a limit allows
            room = min((1 - OTHERS) * unused, available - needs)
        return int(self._share(part) * max(room, 0.0)) >> self._halvings

    def divide(self, wanted: Mapping[str, float], reserved: int = 0) -> None:
        """Let caches of `CACHES` that want less than their share pass the rest on, until the stage ends.

        `wanted` are bytes by part, infinite for one that takes all it gets; `reserved` as in `room`.
        """
        self._divided = "", CACHES
        whole = sum(self.room(part, reserved) for part in CACHES) / max(sum(CACHES.values()), 1e-9)
        self._divided = self.stage, passed_on(CACHES, {part: wanted[part] / max(whole, 1.0) for part in CACHES})

    def _share(self, part: str) -> float:
        stage, shares = self._divided
        return (shares if stage == self.stage and part in shares else CACHES | BESIDE)[part]

    def watch(self, cache: C) -> C:
        """Halve a cache when the device is full, as long as the cache exists; returns it."""
        self._caches.add(cache)
        return cache

    def survive(self, work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """What a function returns. If the device's memory is full, caches are halved, and the function begins again.

        Processes agree on its end: if it fails in one of them, it fails in all, and they begin again together.
        """
        while True:
            with suppress(_MemoryFullError), parallel.agree():
                try:
                    return work(*arguments, **keywords)
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self._halvings == HALVINGS:
                        raise
                raise _MemoryFullError  # here the error and its frames hold no tensors any more
            self._halve()

    def _halve(self) -> None:
        self._halvings += 1
        for cache in self._caches:
            cache.halve()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@functools.cache
def memory_of(device: torch.device) -> DeviceMemory:
    """The memory of a device: always the same object."""
    return DeviceMemory(device)


def grow_segments(device: torch.device) -> None:
    """Let a GPU's allocator grow its segments, which leaves fewer gaps, unless the environment configures it.

    The command sets the variable before PyTorch is imported; Python code may have imported it already.
    """
    configured = any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # older releases lack it
    if device.type == "cuda" and not configured and change is not None:
        change("expandable_segments:True")


def set_limit(device: torch.device, limit: int | None) -> None:
    """Bound what a run may take of a device; its processes share main memory, and each has a GPU.

    Raises RecipeError if the device has less.
    """
    if limit is not None and limit > (total := all_bytes(device)):
        raise RecipeError(f"compute.memory is {size(limit)}, but {device} has {size(total)}: set less, or none")
    shared, memory = 1 if device.type == "cuda" else parallel.local_size(), memory_of(device)
    memory.limit = None if limit is None else limit // shared


CPU = torch.device("cpu")
"""Main memory."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_MAPS_NOTHING, _RETURNS_NOTHING = 2**31 - 1, -1
_MOST_DYNAMIC = 32 << 20
"""Upper end of glibc's dynamic threshold, which stops adapting once it is set explicitly."""

_keeper: ctypes.CDLL | None = None
"""The C library while it keeps memory."""


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep memory that is freed on a CPU in the process while the body runs, then return it.

    glibc returns every freed allocation above 32 MB to the system, and the next one needs new pages, which the system
    fills with zeros: a fifth of the time of a 0.5B's passes, a third of its training (docs/notebook/speed.md). Nested
    uses belong to the outer one. Nothing happens on a GPU or without glibc.
    """
    global _keeper  # noqa: PLW0603 - as mallopt's own settings, it is the process's
    library = _glibc() if device.type == "cpu" else None
    if library is None or _keeper is not None:
        yield
        return
    _set(library, _MAPS_NOTHING, _RETURNS_NOTHING)
    _keeper = library
    try:
        yield
    finally:
        _keeper = None
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
