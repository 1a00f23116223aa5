"""Threads of PyTorch that wait for others: they soon leave the processor, which others may need.

At each operation GNU's OpenMP lets a thread that waits spin 300,000 times, or 3 ms, before it sleeps. On a machine with
other work the thread that it waits for may have no processor meanwhile, and then everything takes ten times as long
(docs/notebook/speed.md). How often threads spin is read from the environment when PyTorch is loaded. Later, OpenMP
spins 100 times while it has more threads than processors, so a few that sleep are enough.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPINS = {"GOMP_SPINCOUNT": "1000"}
"""How often threads spin from when PyTorch is loaded; as fast as more on an idle machine."""
SETTINGS = (*SPINS, "OMP_WAIT_POLICY")
"""Variables by which a user says how threads wait."""
MAPS = Path("/proc/self/maps")

_loaded_so = False
_sleepers = threading.Lock()


def load_torch() -> None:
    """Import PyTorch, with threads that soon sleep; the environment of this process and its children stays as it is."""
    global _loaded_so  # noqa: PLW0603 - as the library, it is the process's
    if "torch" in sys.modules or _chosen():
        return
    wanted = {**SPINS, "PYTORCH_ENABLE_MPS_FALLBACK": "1"}  # what Apple's GPUs lack runs on the CPU
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        import torch  # noqa: F401

        _loaded_so = True
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def soon_asleep() -> Iterator[None]:
    """Let waiting threads soon sleep while the body runs, also if PyTorch was loaded before.

    Nothing happens if they do anyway, if the user has chosen how they wait, or with another OpenMP than GNU's.
    """
    import torch

    if _loaded_so or _chosen() or torch.get_num_threads() == 1 or not _sleepers.acquire(blocking=False):
        yield
        return
    ready, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=_keep_threads, args=(ready, ended), name="sleeping threads", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()  # with it, OpenMP ends its threads
        _sleepers.release()


def _chosen() -> bool:
    return any(name in os.environ for name in SETTINGS)


def _keep_threads(ready: threading.Event, ended: threading.Event) -> None:
    """Own as many sleeping threads of OpenMP as there are processors until the end."""
    with suppress(OSError, AttributeError):  # no such system, or another library of this name
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
        for path in {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}:
            library = ctypes.CDLL(path)
            nothing = ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p)
            library.GOMP_parallel(nothing, None, library.omp_get_num_procs() + 1, 0)
    ready.set()
    ended.wait()
