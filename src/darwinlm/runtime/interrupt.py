"""Ctrl-C and SIGTERM in a command: the first one ends it, and those that follow don't disturb its end."""

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
"""Seconds that the end of a command may take. A signal after them ends the process at once."""
_first: tuple[float, int] | None = None
"""When the first signal came, and its number."""


def status() -> int | None:
    """The status with which an interrupted command is about to end, as shells count it; None if it goes on."""
    return None if _first is None else 128 + _first[1]


def handled() -> None:
    """Go on after a Ctrl-C, such as that of one answer: the next one is a first one again."""
    global _first  # noqa: PLW0603 - signals belong to the process
    _first = None


@contextmanager
def one_end(last_words: Callable[[], None], *, alone: bool) -> Iterator[None]:
    """Raise KeyboardInterrupt at the first Ctrl-C only, or SystemExit at SIGTERM, until the process ends.

    Libraries clean up while it passes through them; another one there breaks them, and is told as a traceback. At one
    that comes after `PATIENCE`, the process ends with its `last_words`. A process that isn't `alone` is killed by
    SIGTERM: it may wait for others, and torchrun sends the signal when one of them has died.
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if alone:
        usual[signal.SIGTERM] = signal.SIG_DFL
    # In the background, shells let commands ignore Ctrl-C.
    replaced = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    if not replaced or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: object) -> None:
        global _first  # noqa: PLW0603
        if _first is None:
            _first = time.monotonic(), number
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(status())
        if time.monotonic() - _first[0] > PATIENCE:
            last_words()
            os._exit(128 + _first[1])

    for number in replaced:
        signal.signal(number, interrupt)
    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = _silent_at_the_end(sys.unraisablehook)
    threading.excepthook = _silent_at_the_end(threading.excepthook)
    try:
        yield
    finally:
        if status() is None:
            for number, handler in replaced.items():
                signal.signal(number, handler)
            sys.unraisablehook, threading.excepthook = hooks


def _silent_at_the_end(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook for errors that nothing catches, which is silent once the command was interrupted."""

    def tell(error: Any) -> None:
        if status() is None:
            hook(error)

    return tell
