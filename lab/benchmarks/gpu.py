"""Acceptance on a GPU: rates, equality with the CPU, and every stage at the shapes of a 7B model, within nine minutes.

    python -m lab.benchmarks.gpu --device cuda --out gpu.json

It needs no hub and no text: models have random weights, and text comes from the tests' generator. Each part is a
separate process with a time limit, so one that runs out of memory or hangs doesn't stop the others; all limits together
are below nine minutes. Each line is `name: value unit (bound) ok|FAIL`. The same is written as JSON after each part,
with plans based on the measured rates. The exit status is 1 if any line failed. The model stays in `--work` for another
run, such as that of one part.
`--tiny --device cpu` runs everything in minutes on small shapes, without bounds on speed. A test does this.
Measurements of several GPUs are in `gpu_node.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lab.benchmarks.gpu_stages import candidates, decoding, recovery, resume, stream, training
from lab.benchmarks.gpu_units import Line, Setup, equality, machine, moments, order, traps
from lab.benchmarks.gpu_whole import database, model, whole


def plans(setup: Setup) -> None:
    """Planned hours of the shipped recipes, from pieces of their work on this device."""
    from transformers import AutoConfig

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.recipe import load_recipe
    from darwinlm.runs.prediction import plan_of
    from darwinlm.runtime.context import settled
    from darwinlm.steps.run_sizes import RunSizes

    if setup.tiny:
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        config = AutoConfig.for_model("llama", **sizes, num_key_value_heads=32, vocab_size=32000)
        config.max_position_embeddings = 4096
        config.save_pretrained(folder)
        for name in PLANNED:
            recipe = load_recipe(name, (), {"model": folder})
            recipe = recipe.model_copy(update={"compute": settled(recipe.compute, setup.kind)})
            plan = plan_of(RunSizes(Checkpoint.describe(Path(folder)), recipe), setup.kind)
            for row in plan.rows:
                setup.told("plan", f"{name} {row.step}", plan.seconds(row)[0] / 60, "min")
            setup.told("plan", f"{name} all", plan.seconds()[0] / 3600, "h")


PARTS: dict[str, tuple[int, Callable[[Setup], None]]] = {
    "machine": (25, machine),
    "moments": (10, moments),
    "equality": (55, equality),
    "order": (25, order),
    "database": (30, database),
    "model": (70, model),
    "whole": (150, whole),
    "stream": (15, stream),
    "candidates": (35, candidates),
    "training": (25, training),
    "recovery": (45, recovery),
    "resume": (15, resume),
    "decoding": (15, decoding),
    "traps": (10, traps),
    "plan": (10, plans),
}
"""Parts by name, with a time limit in seconds."""

ALL = 540
"""Bound on the sum of all limits, in seconds."""

DISK = 50e9
"""Bytes of the working folder: a 7B model, its database, smaller versions, and checkpoints of two blocks."""

TINY_BOX = 300
"""Time limit in seconds of each part with `--tiny`, on a machine that may be busy."""

PLANNED = ("llama2-7b-2.7b", "llama2-7b-2.7b-fast")


def _run_part(name: str, setup: Setup) -> None:
    """Run one part inside its process."""
    try:
        PARTS[name][1](setup)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is that part's result
        text = traceback.format_exc().strip().splitlines()
        setup.put(Line(name, f"{name} ended early", f"{type(error).__name__}: {str(error)[:300]}", ok=False))
        setup.put(Line(name, f"{name} ended at", " | ".join(text[-5:-1])[:600], ok=False))
    setup.lines.put(None)


def run_parts(chosen: list[str], setup: Setup, box: int | None, out: Path) -> list[Line]:
    """Run parts one after the other, print each line at once, and write all of them after each part."""
    # Its server imports what parts need once, and starts each from there, before anything has touched the GPU.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lab.benchmarks.gpu"])
    results: list[Line] = []
    for name in chosen:
        setup.lines = context.Queue()
        process = context.Process(target=_run_part, args=(name, setup))
        begun = time.monotonic()
        process.start()
        for line in _lines_of(process, setup.lines, name, begun + (box or PARTS[name][0])):
            print(line, flush=True)
            results.append(line)
        process.kill()
        process.join()
        results.append(Line(name, f"{name} took", time.monotonic() - begun, "s"))
        print(results[-1], flush=True)
        failed = [line.name for line in results if line.ok is False]
        out.write_text(json.dumps({"failed": failed, "lines": [asdict(line) for line in results]}, indent=1))
    return results


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


def main() -> None:
    """Parse options, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="small shapes, no bounds on speed")
    parser.add_argument("--part", action="append", choices=PARTS, help="run only this part; repeatable")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="folder of models and runs; it stays")
    options = parser.parse_args()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --device cpu --tiny runs all parts on small shapes")
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    free = shutil.disk_usage(work).free + there
    if not options.tiny and free < DISK:
        parser.error(f"{work} has {free / 1e9:.0f} GB, {DISK / 1e9:.0f} GB are needed: give a folder with --work")
    setup = Setup(options.device, tiny=options.tiny, work=work, lines=None)
    results = run_parts(options.part or list(PARTS), setup, TINY_BOX if options.tiny else None, options.out)
    failed = [line.name for line in results if line.ok is False]
    print(f"{len(failed)} of {len(results)} lines failed{': ' if failed else ''}{', '.join(failed)}; {options.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
