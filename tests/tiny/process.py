"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(
    *arguments: object, status: int = 0, seconds: float = 240, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python *arguments` as this process does; it must end with `status`, and its output is captured."""
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    words = [sys.executable, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=where, cwd=cwd, check=False)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
    return done
