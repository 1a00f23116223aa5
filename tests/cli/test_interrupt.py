"""Ctrl-C, once or twice, and SIGTERM: one line says that finished work is kept, and nothing else is printed."""

import signal
from pathlib import Path

import pytest
from tests.tiny.process import python

ENDS = {
    "an error of a library that it makes": "try: kill()\nexcept KeyboardInterrupt: raise RuntimeError('empty stack')",
    "a status of a library": "try: kill()\nexcept KeyboardInterrupt: raise SystemExit(99)",
    "an object that is removed": """
class Odd:
    def __del__(self):
        raise ValueError("removed twice")
odd = Odd()
kill()
""",
    "code of other people's that raises it": "raise KeyboardInterrupt",
}
"""What a command does after Ctrl-C, whose process gets it by `kill()`."""
HANGS = 800
"""Seconds for which a command hangs that nothing ends."""
COMMAND = """
import os, signal, sys, time
import darwinlm.runs.finished
from darwinlm.cli import main

def kill():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

def command(path):
    exec(body, {"kill": kill})

darwinlm.runs.finished.read_summary = command
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell lets it be ignored
body, sys.argv = sys.argv[1], ["darwinlm", "show", os.getcwd()]
open("summary.json", "w").close()
main()
"""


@pytest.mark.parametrize("end", ENDS)
def test_a_command_ends_with_one_line(tmp_path: Path, end: str) -> None:
    (line,) = python("-c", COMMAND, ENDS[end], cwd=tmp_path, status=130).stderr.splitlines()
    assert line.startswith("interrupted; finished work is kept. Resume with: darwinlm show ")


def test_a_command_that_does_not_end_is_killed_by_another_one(tmp_path: Path) -> None:
    hangs = f"import time\ntry:\n    kill()\nfinally:\n    kill()\n    time.sleep({HANGS})\n"
    (line,) = python("-c", COMMAND, hangs, cwd=tmp_path, status=-signal.SIGINT, seconds=HANGS).stderr.splitlines()
    assert line.startswith("interrupted; finished work is kept")


WITH_TEMPORARIES = """
import tempfile
with tempfile.TemporaryDirectory(dir="."):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3600)
"""
"""What reading text, opening a GGUF file and starting an engine have in common."""


@pytest.mark.parametrize("first", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"])
def test_sigterm_leaves_no_temporary_file(tmp_path: Path, first: str) -> None:
    """Also in the background, where shells let a command ignore Ctrl-C."""
    code = COMMAND.replace('{"kill": kill}', '{"os": os, "signal": signal, "time": time}').replace(
        "main()", first + "main()"
    )
    (line,) = python("-c", code, WITH_TEMPORARIES, cwd=tmp_path, status=143).stderr.splitlines()
    assert line.startswith("interrupted; finished work is kept. Resume with: darwinlm show ")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_one_of_several_processes_is_killed_by_sigterm() -> None:
    """It may wait for one that has died, for which torchrun sends the signal."""
    code = """
import os, signal
os.environ["WORLD_SIZE"] = "2"
from darwinlm.cli.main import _listen
_listen("resume")
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert python("-c", code, status=-signal.SIGTERM).stderr == ""
