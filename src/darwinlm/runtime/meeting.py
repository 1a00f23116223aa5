"""Meetings of processes: each waits for the others, even for hours, as long as they are alive.

Collectives have a time-out of minutes, so all processes meet before each of them. While a process waits, it watches the
heartbeats of the others, which a thread of each writes into the shared store.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from darwinlm.runtime.errors import ParallelError, first_line

PATIENCE = 600.0
"""Seconds without a heartbeat after which a process counts as lost."""

BEAT = 5.0
"""Seconds between two heartbeats."""

FIRST_LOOK, LAST_LOOK = 5e-4, 0.1
"""Polling interval of the store in seconds: initial and maximum."""

RESUME = "read its messages, then rerun the same command; finished work is kept"


@dataclass
class _Pulse:
    """The last heartbeat of a process, the time of the last look at it, and seconds without a new one."""

    beat: bytes
    seen: float
    silent: float = 0.0


class Meetings:
    """The meetings of one process with all others; all processes count them in the same order.

    Times are in seconds, as in `PATIENCE` and `BEAT`.
    """

    def __init__(self, store: Any, rank: int, size: int, *, patience: float = PATIENCE, beat: float = BEAT) -> None:
        self.store = store
        self.rank = rank
        self.size = size
        self.patience = patience
        self._beat_seconds = beat
        self._held = 0
        self._left = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def wait(self, what: str) -> None:
        """Wait until all processes are here.

        All processes must give the same purpose `what`. Raises ParallelError if another process is lost, has ended, or
        is at another meeting.
        """
        self._held += 1
        pulses: dict[int, _Pulse] = {}
        try:
            self.store.set(self._place(self.rank), what)
            arrived, pause = f"meeting/{self._held}/{what}", FIRST_LOOK
            missing = self.store.add(arrived, 1) < self.size
            while missing:
                time.sleep(pause)
                missing = self.store.add(arrived, 0) < self.size
                if missing and pause == LAST_LOOK:
                    for other in range(self.size):
                        self._look_at(other, what, pulses)
                pause = min(2 * pause, LAST_LOOK)
        except RuntimeError as error:
            raise lost(error) from error

    def leave(self) -> None:
        """Announce the end of this process, so that no other waits for it."""
        self._left.set()
        self._beating.join()
        try:
            self.store.set(f"left/{self.rank}", "")
        except RuntimeError:  # the process of the store has already ended
            return

    def _place(self, rank: int) -> str:
        return f"meeting/{self._held}/{rank}"

    def _look_at(self, other: int, what: str, pulses: dict[int, _Pulse]) -> None:
        """Check whether a missing process may still come. Raises ParallelError."""
        if self.store.check([self._place(other)]):
            purpose = self.store.get(self._place(other)).decode()
            if purpose != what:
                raise ParallelError(
                    f"process {self.rank} waits for '{what}', process {other} for '{purpose}': please report this"
                )
            return
        if self.store.check([f"left/{other}"]):
            raise ParallelError(f"process {other} has ended: {RESUME}")
        now = time.monotonic()
        pulse = self.store.get(f"pulse/{other}") if self.store.check([f"pulse/{other}"]) else b""
        if other not in pulses or pulses[other].beat != pulse:
            pulses[other] = _Pulse(pulse, now)
        pulses[other].silent += min(now - pulses[other].seen, 10 * LAST_LOOK)  # a clock may jump after a sleep
        pulses[other].seen = now
        if pulses[other].silent > self.patience:
            raise ParallelError(f"process {other} has not responded for {self.patience / 60:.0f} minutes: {RESUME}")

    def _beat(self) -> None:
        count = 0
        while not self._left.is_set():
            count += 1
            try:
                self.store.set(f"pulse/{self.rank}", str(count))
            except RuntimeError:  # the store is gone; the next meeting reports it
                return
            self._left.wait(self._beat_seconds)


def lost(error: RuntimeError) -> ParallelError:
    """The error for a broken connection to the others."""
    return ParallelError(f"the connection to another process is lost ({first_line(error)[:200]}): {RESUME}")
