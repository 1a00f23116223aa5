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
    word = secrets.token_hex(16)  # a program that ends early doesn't print it
    with tempfile.TemporaryDirectory(prefix="darwinlm-code-") as name:
        folder = Path(name)
        (folder / "answer.py").write_text(f"{code}\n\n{tests}\n", encoding="utf-8", errors="replace")
        (folder / "word").write_text(word, encoding="utf-8")
        program = PROGRAM.format(cpu=int(seconds) + 1, memory=MEMORY, file=FILE)
        environment = {"PATH": os.defpath, "HOME": name, "TMPDIR": name, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
        with (folder / "out").open("wb") as output:
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
        said = (folder / "out").read_bytes()
    return status == 0 and said.endswith(word.encode())
