"""The lines that run under test are those of coverage.py."""

import builtins
import runpy
import sys
from pathlib import Path
from types import ModuleType

import coverage

from tests.tiny.lines import RAN, Lines

PROGRAM = '''"""Every kind of statement."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(
    frozen=True,
)
class Pair:
    """Two."""

    left: int
    """The first."""
    right: int = 2

    @functools.cached_property
    def larger(self) -> int:
        """Not asked for."""
        return max(
            self.left,
            self.right,
        )


def sign(number: int) -> str:
    """Of a number."""
    if number > 0:
        return "+"
    elif number < 0:
        return "-"
    else:
        return "0"


def caught(error: BaseException) -> str:
    try:
        raise error
    except KeyError:
        return "key"
    except (
        ValueError,
    ):
        found = "value"
    finally:
        _ = [
            each
            for each in range(3)
        ]
    return found


def kind(value: object) -> str:
    match value:
        case int():
            return "int"
        case [first, *_] if first:
            return "list"
        case _:
            return "other"


def never() -> None:
    global COUNT
    COUNT = 1
    with open("nothing") as file:
        while True:
            break
        for line in file:
            continue
        else:
            pass
    assert (lambda: 1)() == 1, "one"


COUNT = 0
for number in (1, 2):
    COUNT += number
while COUNT:
    COUNT -= 1
else:
    COUNT = 5
signs = sign(1), sign(0)
errors = caught(ValueError())
kinds = kind(1), kind([2])
pair = Pair(1)
'''


def missing(data: dict[str, list[int]], path: Path) -> list[int]:
    measured = coverage.Coverage(data_file=None, config_file=False)
    measured.get_data().add_lines(data)
    return measured.analysis2(str(path))[3]


def test_the_same_lines_are_missing(tmp_path, monkeypatch):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    traced = coverage.Coverage(data_file=None, config_file=False, include=[str(path)])
    with traced.collect():
        expected = runpy.run_path(str(path))
    (tmp_path / "store").touch()
    lines = Lines([path], tmp_path / "store")
    monkeypatch.setattr(builtins, RAN, lines.ran, raising=False)
    found = ModuleType("program")
    monkeypatch.setitem(sys.modules, "program", found)  # as dataclasses need it
    exec(lines.compiled(path.read_bytes(), str(path)), vars(found))
    for name in ("COUNT", "signs", "errors", "kinds"):
        assert vars(found)[name] == expected[name]
    not_run = traced.analysis2(str(path))[3]
    assert len(not_run) > 10
    assert missing(lines.executed(), path) == not_run


def test_processes_share_what_they_ran(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("first = 1\nsecond = 2\n", encoding="utf-8")
    (tmp_path / "store").touch()
    one, other = (Lines([path], tmp_path / "store") for _ in range(2))
    one.ran[one.starts[str(path)] + 1] = 1
    assert other.executed() == {str(path): [2]}
