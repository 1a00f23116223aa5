"""The clock of time limits stands still while other programs have the processor."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from darwinlm.runtime import clock
from darwinlm.runtime.clock import working_time

BUSY = "while True: pass"
LONG = 1.0


@pytest.mark.skipif(not clock.SCHEDULED.exists(), reason="this system doesn't count what a process waited")
def test_waiting_for_a_processor_takes_no_time() -> None:
    """On one processor with two busy programs, work takes its processor time."""
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
    try:
        for process in (0, *(other.pid for other in others)):
            os.sched_setaffinity(process, one)
        begun, wall, used = working_time(), time.monotonic(), time.process_time()
        while time.monotonic() - wall < LONG:
            pass
        used = time.process_time() - used
        worked = working_time() - begun
    finally:
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
            other.wait()
    assert used < 0.8 * LONG
    assert worked == pytest.approx(used, abs=0.2)


@pytest.mark.parametrize("content", [None, "", "12", "12 much 3"])
def test_a_system_that_counts_no_waiting_has_an_ordinary_clock(content, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "schedstat"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(clock, "SCHEDULED", file)
    before, found, after = time.monotonic(), working_time(), time.monotonic()
    assert before <= found <= after
