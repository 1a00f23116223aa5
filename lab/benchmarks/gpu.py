"""Acceptance on a GPU: rates, equality with the CPU, and every stage at the shapes of a 7B model.

    python -m lab.benchmarks.gpu --device cuda --out gpu.json

It needs this tree, PyTorch and transformers; other packages may come as wheels, in the folder `--wheels`. It needs no
hub and no text: models have random weights, and text comes from the tests' generator. Each part is a separate process
with a time limit, so one that runs out of memory or hangs doesn't stop the others. A command starts only parts whose
limit ends within `--minutes`; the same command again goes on with the rest, and the models in `--work` stay for it.

Each line is `name: value unit (bound) ok|FAIL`. All lines of all commands are written as JSON after each part. The exit
status is 1 if any line failed, and 3 if parts are left. A disk or a device that is too small for a whole 7B model gets
one of its shapes with fewer blocks.
`--tiny --device cpu` runs everything in minutes on small shapes, without bounds on speed. A test does this.
Measurements of several GPUs are in `gpu_node.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import queue
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lab.benchmarks.gpu_units import Line, Setup
from lab.benchmarks.gpu_wheels import NEEDED, unpack

LIMITS = {
    "machine": 60,
    "moments": 30,
    "equality": 240,
    "order": 60,
    "database": 120,
    "model": 240,
    "whole": 420,
    "stream": 60,
    "candidates": 120,
    "training": 120,
    "recovery": 180,
    "resume": 120,
    "decoding": 90,
    "traps": 60,
    "plan": 60,
}
"""Parts in order, with time limits in seconds, about twice what is expected of an H100."""

MINUTES = 8.0
"""Length of one command."""

START = 15.0
"""Seconds for which the first part waits for imports."""

TINY_BOX = 300
"""Time limit in seconds of each part with `--tiny`, on a machine that may be busy."""

BLOCKS = (32, 16, 8, 4)
"""Numbers of blocks of the large model, of which the first one that the disk has room for is used."""
BLOCK, OUTSIDE, FACTORS = 0.405e9, 0.525e9, 0.277e9
"""Bytes of a 7B model's block, of its embedding and head, and of the factors of a block."""
OTHERS, CHECKPOINTS = 5e9, 10e9
"""Bytes of the models of two and four blocks and their databases, and of checkpoints of the former."""
SMALLER, OF_A_RUN = 0.38, 1.2
"""Blocks of the smaller model, and of those that a run writes, as shares of the large one's."""

ROOT = Path(__file__).resolve().parents[2]
TREE = (ROOT / "src", ROOT)
"""Folders of this tree's packages."""

LEFT = 3
"""Exit status if parts are left for another command."""


def disk_needed(blocks: int) -> float:
    """Bytes for a model of so many blocks, its database, and smaller versions of it."""
    stay = OTHERS + blocks * ((1 + SMALLER) * BLOCK + FACTORS) + 2 * OUTSIDE
    return stay + max(blocks * OF_A_RUN * BLOCK + 2 * OUTSIDE, CHECKPOINTS)


def blocks_for(work: Path) -> int:
    """Number of blocks of the large model: as before in this folder, or what the disk has room for.

    Raises ValueError if there is no room for the smallest one.
    """
    for blocks in BLOCKS:
        if (work / f"llama-{blocks}" / "model.safetensors.index.json").exists() and blocks > BLOCKS[-1]:
            return blocks
    taken = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    free = shutil.disk_usage(work).free + taken
    fitting = [blocks for blocks in BLOCKS if disk_needed(blocks) <= free]
    if not fitting:
        needed = disk_needed(BLOCKS[-1])
        raise ValueError(f"{work} has {free / 1e9:.0f} GB, {needed / 1e9:.0f} GB are needed: give a folder with --work")
    return fitting[0]


def run_parts(chosen: list[str], setup: Setup, out: Path, ends: float) -> list[str]:
    """Run parts one after the other, print each line at once, and write all of them after each part.

    A part whose time limit passes `ends`, on the monotonic clock, is left out, and so are those after it; returns them.
    """
    # Its server imports what parts need once, and starts each from there, before anything has touched the GPU.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lab.benchmarks.gpu_parts"])
    for place, name in enumerate(chosen):
        limit = TINY_BOX if setup.tiny else LIMITS[name] + (0 if place else START)
        if time.monotonic() + limit > ends and place:
            return chosen[place:]
        found = []
        setup.lines = context.Queue()
        process = context.Process(target=_run_part, args=(name, setup))
        begun = time.monotonic()
        process.start()
        for line in _lines_of(process, setup.lines, name, begun + limit):
            print(line, flush=True)
            found.append(line)
        process.kill()
        process.join()
        found.append(Line(name, f"{name} took", time.monotonic() - begun, "s"))
        print(found[-1], flush=True)
        write(out, {**read(out), name: found})
    return []


def _run_part(name: str, setup: Setup) -> None:
    from lab.benchmarks.gpu_parts import run_part

    run_part(name, setup)


def _lines_of(process: Any, lines: Any, name: str, ends: float) -> Iterator[Line]:
    """The lines of a part, and one about its end if it isn't in order."""
    while True:
        gone = not process.is_alive()
        try:
            line = lines.get(timeout=min(max(ends - time.monotonic(), 0.01), 0.5))
        except queue.Empty:
            if gone or time.monotonic() > ends:
                reason = f"its process ended with {process.exitcode}" if gone else "its time limit has passed"
                yield Line(name, f"{name} ended early", reason, ok=False)
                return
            continue
        if line is None:
            return
        yield line


def read(out: Path) -> dict[str, list[Line]]:
    """Lines of earlier commands by part."""
    found: dict[str, list[Line]] = {}
    if out.exists():
        for line in json.loads(out.read_text(encoding="utf-8"))["lines"]:
            found.setdefault(line["part"], []).append(Line(**line))
    return found


def write(out: Path, found: dict[str, list[Line]]) -> None:
    """Write all lines, in the order of the parts."""
    lines = [line for name in LIMITS for line in found.get(name, ())]
    failed = [line.name for line in lines if line.ok is False]
    left = [name for name in LIMITS if name not in found]
    text = json.dumps({"failed": failed, "left": left, "lines": [asdict(line) for line in lines]}, indent=1)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(out)


def _find_packages(wheels: Path | None, work: Path) -> None:
    """Start again with this tree and the unpacked wheels on the path, if they aren't. Raises ValueError."""
    unpacked = work / "packages"
    wanted = [*map(str, TREE), *([str(unpacked)] if wheels is not None else [])]
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if path[: len(wanted)] == wanted:
        return
    if wheels is not None:
        print(f"unpacked {', '.join(unpack(wheels, unpacked))}", flush=True)
    rest = [folder for folder in path if folder and folder not in wanted]
    os.environ["PYTHONPATH"] = os.pathsep.join([*wanted, *rest])
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main() -> None:
    """Parse options, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON of this and earlier commands")
    parser.add_argument("--tiny", action="store_true", help="small shapes, no bounds on speed")
    parser.add_argument("--part", action="append", choices=LIMITS, help="run this part, also again; repeatable")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="folder of models and runs; it stays")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="length of this command")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of packages that this Python lacks")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --device cpu --tiny runs all parts on small shapes")
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        _find_packages(options.wheels, work)
        blocks = BLOCKS[-1] if options.tiny else blocks_for(work)
    except ValueError as error:
        parser.error(str(error))
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"this Python lacks {', '.join(missing)}, which some parts need: give their wheels with --wheels")
    done = read(options.out)
    chosen = options.part or [name for name in LIMITS if name not in done]
    setup = Setup(options.device, tiny=options.tiny, work=work, lines=None, blocks=blocks)
    left = run_parts(chosen, setup, options.out, ends)
    lines = [line for part in read(options.out).values() for line in part]
    failed = [line.name for line in lines if line.ok is False]
    print(f"{len(failed)} of {len(lines)} lines failed{': ' if failed else ''}{', '.join(failed)}; {options.out}")
    if left:
        print(f"left are {', '.join(left)}: run the same command again")
    sys.exit(1 if failed else LEFT if left else 0)


if __name__ == "__main__":
    main()
