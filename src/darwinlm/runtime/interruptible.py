"""Waiting in native code that a signal can end: Python's handlers run only when the main thread is back from it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

LONG = 60.0
"""Seconds of waiting without a word."""
EVERY = 0.2
"""Seconds between two looks at the thread that waits: Windows handles no signal in between."""


def interruptible(wait: Callable[[], T], waits_long: str) -> T:
    """What `wait` returns or raises, called in a thread that is left behind if a signal ends the waiting.

    The line `waits_long` is printed once if it takes long.
    """
    waited: Future[T] = Future()

    def call() -> None:
        try:
            waited.set_result(wait())
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            waited.set_exception(error)

    thread = threading.Thread(target=call, name="waiting", daemon=True)
    thread.start()
    begun, told = time.monotonic(), False
    while thread.is_alive():
        thread.join(EVERY)
        if not told and time.monotonic() - begun > LONG:
            told = True
            sys.stderr.write(f"{waits_long}\n")
    return waited.result()
