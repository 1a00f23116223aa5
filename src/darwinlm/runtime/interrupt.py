"""Ctrl-C in a command: the first one ends it, and those that follow don't disturb its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 5.0
"""Seconds that the end of a command may take. A Ctrl-C after them ends the process at once."""
_since: float | None = None


def pending() -> bool:
    """Whether the command was interrupted and is about to end."""
    return _since is not None


def handled() -> None:
    """Go on after an interrupt, such as that of one answer: the next one is a first one again."""
    global _since  # noqa: PLW0603 - signals belong to the process
    _since = None


@contextmanager
def one_end(last_words: Callable[[], None], status: int) -> Iterator[None]:
    """Raise KeyboardInterrupt at the first Ctrl-C only, until the process ends.

    Libraries clean up while it passes through them; another one there breaks them, and is told as a traceback. At one
    that comes after `PATIENCE`, the process ends with its `last_words` and `status`.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        global _since  # noqa: PLW0603
        if _since is None:
            _since = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - _since > PATIENCE:
            last_words()
            os._exit(status)

    signal.signal(signal.SIGINT, interrupt)
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = _silent_at_the_end(sys.unraisablehook)
    threading.excepthook = _silent_at_the_end(threading.excepthook)
    try:
        yield
    finally:
        if not pending():
            signal.signal(signal.SIGINT, before)
            sys.unraisablehook, threading.excepthook = hooks


def _silent_at_the_end(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook for errors that nothing catches, which is silent once the command was interrupted."""

    def tell(error: Any) -> None:
        if not pending():
            hook(error)

    return tell
