"""One of several processes fails, in any way: all end soon, not with 0, and one message is printed.

The shutdown of their connection never returns here, as NCCL's, which waits for the others.
"""

import signal
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.tiny.process import Forked, free_port, start_together

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ParallelError

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="gloo's processes need a POSIX system")

PROGRAM = """
import os, signal, sys, time
import torch.distributed as dist
from darwinlm.cli import main
from darwinlm.cli.app import command, new_app
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import NumericsError

app = new_app()

@app.callback()
def root(): pass

@command("", of=app)
def prune(kind: str, rank: int, where: str) -> None:
    parallel.init_from_environment()
    parallel.gather(None)
    dist.destroy_process_group = lambda: time.sleep(800)
    fails = parallel.rank() == rank
    if where == "agreeing":
        with parallel.agree():
            if fails:
                fail(kind)
    elif fails:
        fail(kind)
    elif where == "waiting":
        parallel.gather(None)
    time.sleep(800)  # as a collective on GPUs, which doesn't notice

def fail(kind):
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    raise {"ours": NumericsError("block 3: NaN"), "unknown": RuntimeError("odd"), "memory": MemoryError()}[kind]

main(app)
"""
HANGS = 800
"""Seconds for which a process of the program hangs that nothing ends."""
SAID = {
    "ours": "error: block 3: NaN",
    "unknown": "RuntimeError: odd",
    "memory": "error: the machine ran out of memory",
    "killed": "error: the connection to another process is lost",
    "interrupted": "interrupted; finished work is kept. Resume with: darwinlm prune interrupted ",
}
STATUS = {"killed": -signal.SIGKILL, "unknown": 1, "interrupted": 130}


@POSIX
@pytest.mark.parametrize(
    ("kind", "rank", "where"),
    [
        *product(("ours", "unknown", "memory", "interrupted"), (0, 1), ("agreeing", "waiting", "on a GPU")),
        *product(("killed",), (0, 1), ("agreeing", "waiting")),
    ],
)
def test_all_end_with_the_message_of_the_first(tmp_path: Path, kind: str, rank: int, where: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = [process.wait(HANGS - 60) for process in start_together(program, "prune", kind, rank, where)]
    assert 0 not in [process.returncode for process in done]
    assert done[rank].returncode == STATUS.get(kind, 2)
    telling = done[1 - rank if kind == "killed" else rank]
    assert SAID[kind] in telling.stderr, done
    assert telling.stderr.count("rror: ") + telling.stderr.count("interrupted; ") == 1
    assert [process.stderr for process in done if process is not telling] == [""]


ALONE = """
import os, signal, threading
from datetime import timedelta
from darwinlm.runtime import parallel

parallel.GPU_PATIENCE = timedelta(seconds=%d)
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
"""


@POSIX
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_for_the_others_can_be_interrupted(tmp_path: Path, rank: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(ALONE % HANGS + PROGRAM, encoding="utf-8")
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2, "RANK": rank}
    done = Forked(program, "prune", "ours", 0, "waiting", **where).wait(HANGS - 60)
    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.startswith("interrupted; finished work is kept. Resume with: darwinlm prune ours ")


@POSIX
def test_success_ends_together(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    ends = PROGRAM.replace(f"time.sleep({HANGS})", "time.sleep(0.2 * parallel.rank())")
    program.write_text(ends, encoding="utf-8")
    done = [process.wait() for process in start_together(program, "prune", "ours", 2, "waiting")]
    assert [(process.returncode, process.stderr) for process in done] == [(0, "")] * 2


@POSIX
def test_no_connection_is_closed_before_all_have_finished(tmp_path: Path) -> None:
    """What a process has sent in the last collective is lost if it closes the connection before the others read it."""
    program, ends = tmp_path / "program.py", f"time.sleep({HANGS})"
    slow = "time.sleep(2 * (parallel.rank() == 0)); open(f'{kind}/finished{parallel.rank()}', 'w').close()"
    closing = "open(f'{kind}/closed{parallel.rank()}', 'w').write(str(sorted(os.listdir(kind))))"
    made = PROGRAM.replace(f"lambda: {ends}", f"lambda: {closing}").replace(f"    {ends}  #", f"    {slow}  #")
    program.write_text(made, encoding="utf-8")
    seen = tmp_path / "seen"
    seen.mkdir()
    done = [process.wait() for process in start_together(program, "prune", seen, 2, "waiting")]
    assert [(process.returncode, process.stderr) for process in done] == [(0, "")] * 2
    for rank in range(2):
        assert "'finished0'" in (seen / f"closed{rank}").read_text(encoding="utf-8")


def test_only_collectives_of_gpus_end_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    init, given, made = dist.init_process_group, {}, {}

    def with_gloo_alone(backend: str, **more: object) -> None:
        given[backend] = more["timeout"]
        init(backend.replace("nccl", "gloo"), **more)

    store = dist.HashStore()
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 1, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))
    monkeypatch.setattr(dist, "init_process_group", with_gloo_alone)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: made.update(device=index))
    parallel.init_from_environment()
    try:
        options = dist.group.WORLD._get_backend(torch.device("cuda")).options
        assert given == {"cpu:gloo,cuda:nccl": parallel.PATIENCE}
        assert (made, options._timeout) == ({"device": 1}, parallel.GPU_PATIENCE)
        assert parallel.tells(ParallelError("of this one"))
        assert not parallel.tells(ParallelError("of this one"))
    finally:
        parallel.shutdown()
