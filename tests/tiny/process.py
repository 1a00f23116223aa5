"""Programs in processes of their own: new ones, and forks of one that has imported everything they need."""

import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

IMPORTED = [
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "darwinlm.runs.recovery",
    "darwinlm.report.pictures.vector",
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*(["tests.tiny.lines"] if "COVERED_LINES" in os.environ else []), *IMPORTED])
"""Its forks start in milliseconds, where a new process imports PyTorch and transformers for seconds."""
MEETINGS = itertools.count()
PATIENCE = 900.0
"""Seconds after which a process hangs; on a busy machine, one that works can take minutes."""


def python(
    *arguments: object, status: int = 0, seconds: float = PATIENCE, cwd: Path | None = None, **environment: str
) -> CompletedProcess[str]:
    """Run `python *arguments` as this process does; it must end with `status`, and its output is captured."""
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    words = [sys.executable, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=where, cwd=cwd, check=False)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
    return done


class Forked:
    """A program that runs in a fork, as `python -m` does for a module, or `python` for a path.

    Args:
        program: A module's name, or the path of a script.
        arguments: Its arguments.
        cwd: Its current folder.
        environment: Variables beyond those of this process.
    """

    def __init__(self, program: str | Path, *arguments: object, cwd: Path | None = None, **environment: object) -> None:
        self.words, self._said = [str(program), *map(str, arguments)], tempfile.TemporaryDirectory()
        where = {**os.environ, **{name: str(value) for name, value in environment.items()}}
        given = (self.words, isinstance(program, Path), self._said.name, str(cwd or Path.cwd()), where)
        self._process = SERVER.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = PATIENCE) -> CompletedProcess[str]:
        """Its status, negative for a signal, and its output."""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(self.words)
        with self._said as folder:
            said = [Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err")]
        return CompletedProcess(self.words, self._process.exitcode, *said)


def forked(program: str | Path, *arguments: object, status: int = 0, **more: object) -> CompletedProcess[str]:
    """Run a program in a fork; it must end with `status`."""
    done = Forked(program, *arguments, **more).wait()
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def together(
    program: str, *arguments: object, processes: int = 2, nodes: int = 1, status: int = 0
) -> list[CompletedProcess[str]]:
    """Run a program in processes that find each other as torchrun's do; all must end with `status`."""
    done = [each.wait() for each in start_together(program, *arguments, processes=processes, nodes=nodes)]
    assert {each.returncode for each in done} == {status}, [each.stdout[-2000:] + each.stderr[-2000:] for each in done]
    return done


def start_together(program: str | Path, *arguments: object, processes: int = 2, nodes: int = 1) -> list[Forked]:
    """Start a program in processes that find each other as torchrun's do, on pretended nodes of equal size."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": processes}
    local = processes // nodes
    ranks = ({"RANK": rank, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local} for rank in range(processes))
    return [Forked(program, *arguments, **meet, **rank) for rank in ranks]


def free_port() -> int:
    """A port of this machine that no other test uses, below those that systems hand out."""
    return 20_000 + (100 * os.getpid() + next(MEETINGS)) % 12_000


def _run(words: list[str], script: bool, said: str, cwd: str, environment: dict[str, str]) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(said, name), os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell lets it be ignored
    os.chdir(cwd)
    os.environ |= environment
    sys.argv = words
    if script:
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
