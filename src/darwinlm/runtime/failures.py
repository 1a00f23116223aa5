"""How several processes end when one of them fails: at once, with one message, that of the first.

A process that fails while others wait for it in a collective can't leave in the usual way: NCCL's shutdown waits for
the others, which wait for it. It therefore records its failure in the store through which the processes met, prints its
message if it is the first, and exits without further ado. The others look into the store every second and exit too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

EVERY = 1.0
"""Seconds between two looks at whether another process has failed, and from then to the end of this one, which may come
to its own end meanwhile: the error may have reached it in a collective. Both together are less than `PATIENCE`."""
PATIENCE = 3.0
"""Seconds for which a process waits for the cause of its failure to be recorded, or for the others to leave."""
STATUS = 1
"""Exit status of a process that ends because another one has failed."""
SHOW_CURSOR = "\x1b[?25h"
"""Shows the cursor again, which a progress bar hides until its end."""
LATEST = 60.0
"""Seconds for which a process that has finished waits for others to come to their end."""
_FAILED, _LEFT, _DONE = "failed", "left", "done"


class Failures:
    """The failures of a run's processes, and a thread that ends this process after one in another.

    Args:
        store: Where all processes record that they failed or left.
        hosts: Whether the store ends with this process, which therefore leaves last.
        n_others: Number of other processes.
    """

    def __init__(self, store: Store, *, hosts: bool, n_others: int) -> None:
        self._store, self._hosts, self._n_others = store, hosts, n_others
        self._own = threading.Event()
        self._watch = threading.Thread(target=self._end_after_failure, name="failures of other processes", daemon=True)
        self._watch.start()

    def is_first(self, *, of_another: bool) -> bool:
        """Record that this process fails; returns whether it prints its message, because no other one has failed.

        `of_another` is whether its error follows from that of another process, which has recorded or soon records it.
        """
        self._own.set()
        try:
            deadline = time.monotonic() + PATIENCE
            while of_another and time.monotonic() < deadline and not self._store.check([_FAILED]):
                time.sleep(0.02)
            return self._store.add(_FAILED, 1) == 1
        except RuntimeError:  # the store has ended with its process, which was killed
            return True

    def await_end(self) -> None:
        """Wait until all processes have finished, before any closes its connections.

        What it has sent in the last collective may still be on its way, and a connection that is closed loses it.
        """
        with contextlib.suppress(RuntimeError):
            self._store.add(_DONE, 1)
            deadline = time.monotonic() + LATEST
            while time.monotonic() < deadline and self._store.add(_DONE, 0) <= self._n_others:
                time.sleep(0.02)

    def part(self) -> None:
        """Leave after success: the process with the store waits for the others."""
        self._own.set()
        self._watch.join()
        self._await_others()

    def exit(self, status: int) -> NoReturn:
        """End this process at once, without clean-up that waits for the others."""
        self._own.set()
        with contextlib.suppress(RuntimeError):
            self._store.add(_FAILED, 1)
        self._await_others()
        _exit(status)

    def _await_others(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.add(_LEFT, 1)
            deadline = time.monotonic() + PATIENCE
            while self._hosts and time.monotonic() < deadline and self._store.add(_LEFT, 0) <= self._n_others:
                time.sleep(0.02)

    def _end_after_failure(self) -> None:
        while not self._own.wait(EVERY):
            try:
                failed = self._store.check([_FAILED])
            except RuntimeError:
                return
            if failed and not self._own.wait(EVERY):
                with contextlib.suppress(RuntimeError):
                    self._store.add(_LEFT, 1)
                _exit(STATUS)


def _exit(status: int) -> NoReturn:
    """Exit with what was printed so far, unless its reader has stopped."""
    flush = threading.Thread(target=_flush, daemon=True)
    flush.start()
    flush.join(EVERY)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed
            if stream.isatty():
                stream.write(SHOW_CURSOR)
            stream.flush()
