"""Code with its tests: what passes, what doesn't, and that neither loops, memory, files nor children outlive it."""

import time
from pathlib import Path

import pytest

from darwinlm.evaluation.measures.tested_code import passes

DOUBLE = "def double(x):\n    return 2 * x\n"
TEST = "assert double(3) == 6"


def test_right_and_wrong_code() -> None:
    assert passes(DOUBLE, TEST, 10)
    assert passes(f"{DOUBLE}print('hello')", TEST, 10)
    assert not passes("def double(x):\n    return x\n", TEST, 10)


@pytest.mark.parametrize(
    "code",
    [
        "def double(x:\n",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "x = [0] * (1 << 29)",
        "open('large', 'wb').write(bytes(1 << 22))",
        "print('x' * (1 << 22))",
        "input()",
        "\ud800",
    ],
)
def test_what_does_not_reach_the_end_fails(code: str) -> None:
    assert not passes(f"{code}\n{DOUBLE}", TEST, 20)


def test_endless_loops_and_children_end() -> None:
    begun = time.monotonic()
    assert not passes("while True: pass", TEST, 0.5)
    assert not passes("import subprocess, time\nsubprocess.Popen(['sleep', '60'])\ntime.sleep(60)", TEST, 0.5)
    assert time.monotonic() - begun < 50, "the child sleeps 60 s"


@pytest.mark.parametrize(
    "code",
    [
        "for _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
        "os.mkdir('d')\nopen('d/file', 'w').close()\nos.chmod('d', 0)",
        "os.symlink(os.path.dirname(os.getcwd()), 'above')",
        "os.unlink('out')",
    ],
)
def test_what_code_leaves_in_its_folder_is_removed(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "other").mkdir()
    assert passes(f"import os\n{code}\n{DOUBLE}", TEST, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_it_sees_neither_the_environment_nor_files_here(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    check = "import os\nassert 'SECRET_TOKEN' not in os.environ\nassert not os.path.exists('here')"
    assert passes(check, "", 10)
