"""The command `darwinlm` run inside the test's process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from darwinlm import cli


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """It ended with status 2, and the last line on stderr is one message that holds all the parts."""
        assert self.code == 2, self
        line = self.err.strip().splitlines()[-1]
        assert line.startswith("error: "), self.err
        for part in parts:
            assert part in line, line
        assert "Traceback" not in self.out + self.err


Command = Callable[..., Ended]


def command_runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Make `command("evaluate", folder, "--suite", "quick")`."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # main sets it; here it is taken back afterwards
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["darwinlm", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if stop.code is not None else 0
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run
