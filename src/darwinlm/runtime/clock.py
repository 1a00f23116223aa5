"""The clock of time limits: it stands still while other programs have the processor."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

SCHEDULED = Path("/proc/self/schedstat")
"""Linux: nanoseconds that the main thread computed, and that it was ready but had to wait for a processor."""


def working_time() -> float:
    """Seconds on a monotonic clock without those in which the process waited for a processor.

    Where the system doesn't count them, all seconds count.
    """
    waited = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        waited = int(SCHEDULED.read_text(encoding="ascii").split()[1])
    return time.monotonic() - waited / 1e9
