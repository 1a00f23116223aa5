"""Waiting in a thread: results and errors arrive, a signal ends it, and a line says if it takes long."""

import os
import signal
import threading
import time

import pytest

from darwinlm.runtime import interruptible as module
from darwinlm.runtime.interruptible import interruptible


def test_results_and_errors_arrive(capsys: pytest.CaptureFixture[str]) -> None:
    assert interruptible(lambda: 3, "waits") == 3
    with pytest.raises(OSError, match="refused"):
        interruptible(lambda: _raise(OSError("refused")), "waits")
    assert capsys.readouterr().err == ""


def test_a_line_says_that_it_takes_long(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "LONG", 0.0)
    interruptible(lambda: time.sleep(3 * module.EVERY), "waits for [others]")
    assert capsys.readouterr().err == "waits for [others]\n"


def test_a_signal_ends_it() -> None:
    never, before = threading.Event(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(lambda: os.kill(os.getpid(), signal.SIGINT) or never.wait(), "waits")
    finally:
        never.set()
        signal.signal(signal.SIGINT, before)


def _raise(error: Exception) -> None:
    raise error
