"""What a process has only one of: other people's code that runs in it may leave it changed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

STREAMS = {"stdout": 1, "stderr": 2}
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def process_state() -> Iterator[None]:
    """Put back the current folder, permissions of new files, handlers of interruptions, and the standard streams.

    Streams that were closed are opened again: a file of ours would get their number, and messages would go into it.
    """
    folder, streams = Path.cwd(), {name: getattr(sys, name) for name in STREAMS}
    mask = os.umask(0o077)
    os.umask(mask)
    copies: dict[int, int] = {}
    for number in STREAMS.values():
        with suppress(OSError):  # it is closed
            copies[number] = os.dup(number)
    handlers = {number: signal.getsignal(number) for number in INTERRUPTIONS}
    try:
        yield
    except KeyboardInterrupt:
        handlers = {}  # the next one is to kill
        raise
    finally:
        os.chdir(folder)
        os.umask(mask)
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.close(copy)
        for name, stream in streams.items():
            setattr(sys, name, _reopened(stream, STREAMS[name]))
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)


def _reopened(stream: TextIO | None, number: int) -> TextIO | None:
    """The stream, or a new one on the same file if it is closed."""
    if stream is None or not stream.closed:
        return stream
    return os.fdopen(number, "w", encoding=stream.encoding, errors="replace", closefd=False)
