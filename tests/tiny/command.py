"""The command `darwinlm` run inside the test's process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from darwinlm import cli
from darwinlm.cli import terminal
from darwinlm.runtime.clock import working_time


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def succeeded(self) -> Ended:
        assert self.code == 0, self
        return self

    def refused(self, *parts: str, after: str = "") -> None:
        """It ended with status 2 and one message on stderr that holds all the parts, `after` what it said before."""
        assert self.code == 2, self
        assert after in self.err, self.err
        lines = self.err.partition(after)[2].strip().splitlines() if after else self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        for part in parts:
            assert part in lines[0], lines[0]
        assert "Traceback" not in self.out + self.err


Command = Callable[..., Ended]


def sets(assignments: Iterable[str]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def command_runner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Callable[[], None] = cli.main
) -> Command:
    """Make `command("evaluate", folder, "--suite", "quick")`, of `darwinlm` or of another `main`."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # main sets it; here it is taken back afterwards
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["darwinlm", *map(str, arguments)])
        # A command begins with its process, the tests' process began long ago.
        monkeypatch.setattr(terminal, "BEGUN", working_time())
        capsys.readouterr()
        code: Any = 0
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell lets the tests ignore it
        try:
            main()
        except SystemExit as stop:
            code = stop.code if stop.code is not None else 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
