"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(
    *arguments: object, seconds: float = 240, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python *arguments` with the paths and the environment of this process; its output is captured."""
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=where, cwd=cwd, check=False)
