"""Nothing is lost: commands are killed, and their disks fill up, at every kind of file operation.

CI takes a seeded part on some commands; `make kills` takes hundreds on all of them (KILLS=all).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WHOLE = os.environ.get("KILLS") == "all"
KILLS, DISKS = (35, 8) if WHOLE else (3, 1)
PART = ["prune", "recover", "import over a folder", "evaluate"]


@pytest.mark.timeout(7200 if WHOLE else 3600)
def test_the_same_command_again_ends_as_if_nothing_had_happened(tmp_path):
    words = [sys.executable, "-m", "tests.faults.harness", tmp_path / "work", KILLS, DISKS]
    words += [] if WHOLE else PART
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([str(word) for word in words], env=where, cwd=Path.cwd(), stdout=subprocess.PIPE) as process:
        said = []
        for line in process.stdout:
            said.append(line.decode())
            print(said[-1], end="", flush=True)
    assert process.returncode == 0, "".join(said)
    assert said[-1].startswith("0 wrong")
