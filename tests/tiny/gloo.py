"""Functions in several processes that are connected with gloo."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from darwinlm.runtime import parallel
from tests.tiny.process import MEETINGS, PATIENCE, SERVER


def in_processes(work: Callable[..., Any], tmp_path: Path, *arguments: Any, count: int = 2) -> dict[int, Any]:
    """Run `work(rank, *arguments)` in processes that meet in a file; returns what each one returned."""
    results = SERVER.SimpleQueue()
    given = (work, tmp_path / f"meet-{next(MEETINGS)}", results, count, arguments)
    mp.start_processes(_one, args=given, nprocs=count, start_method="forkserver")
    return dict(results.get() for _ in range(count))


def _one(
    rank: int, work: Callable[..., Any], place: Path, results: Any, count: int, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    meeting = {"init_method": f"file://{place}", "timeout": timedelta(seconds=PATIENCE)}
    dist.init_process_group("gloo", rank=rank, world_size=count, **meeting)
    try:
        results.put((rank, work(rank, *arguments)))
    finally:
        parallel.shutdown()
