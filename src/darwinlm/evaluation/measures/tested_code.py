"""Python that a model wrote, run with its tests in a process with limits.

The process gets an empty folder, no input, a bare environment, and limits on time, memory and files. It is no sandbox:
the code runs with the user's rights, and may use the network.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from darwinlm.runtime.folders import remove_deep

MEMORY = 1 << 30
"""Bytes of memory of the process."""
FILE = 1 << 20
"""Bytes of its largest file, and of its output."""

PROGRAM = """
import sys
try:
    import resource
except ImportError:
    pass
else:
    for kind, most in ((resource.RLIMIT_CPU, {cpu}), (resource.RLIMIT_AS, {memory}), (resource.RLIMIT_FSIZE, {file})):
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
exec(compile(open(sys.argv[1], encoding="utf-8").read(), "answer.py", "exec"), {{"__name__": "__main__"}})
print(open(sys.argv[2]).read(), end="", file=sys.__stdout__)
"""


def passes(code: str, tests: str, seconds: float) -> bool:
    """Whether code runs to its end, followed by its tests, within some seconds of time."""
    folder = Path(tempfile.mkdtemp(prefix="darwinlm-code-"))
    try:
        return _passes(folder, f"{code}\n\n{tests}\n", seconds)
    finally:
        remove_deep(folder)


def _passes(folder: Path, code: str, seconds: float) -> bool:
    word = secrets.token_hex(16)  # a program that ends early doesn't print it
    (folder / "answer.py").write_text(code, encoding="utf-8", errors="replace")
    (folder / "word").write_text(word, encoding="utf-8")
    program = PROGRAM.format(cpu=int(seconds) + 1, memory=MEMORY, file=FILE)
    home = str(folder)
    environment = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    with (folder / "out").open("w+b") as output:
        process = subprocess.Popen(  # noqa: S603 - it was asked for by --run-code
            [sys.executable, "-I", "-c", program, str(folder / "answer.py"), str(folder / "word")],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = -1
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        said = output.read()
    return status == 0 and said.endswith(word.encode())
