"""Acceptance on a GPU: rates, equality with the CPU, and every stage at the shapes of a 7B model, in about ten minutes.

    python -m lab.benchmarks.gpu --device cuda --out gpu.json

It needs no hub and no text: models have random weights, and text comes from the tests' generator. Each part is a
separate process with a time limit, so one that runs out of memory or hangs doesn't stop the others. Each line is
`name: value unit (bound) ok|FAIL`. The same is written as JSON, with plans based on the measured rates. The exit status
is 1 if any line failed.
`--tiny --device cpu` runs everything in minutes on small shapes, without bounds on speed. A test does this.
At the end it plans the shipped recipes, as `darwinlm plan --device cuda` does.
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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lab.benchmarks.gpu_stages import candidates, decoding, recovery, refit, resume, stream, training
from lab.benchmarks.gpu_units import Line, Setup, equality, machine, mixed_types, moments, order, traps

PARTS: dict[str, tuple[int, Callable[[Setup], None]]] = {
    "machine": (60, machine),
    "equality": (120, equality),
    "mixed types": (30, mixed_types),
    "moments": (60, moments),
    "order": (90, order),
    "stream": (120, stream),
    "candidates": (240, candidates),
    "training": (120, training),
    "recovery": (240, recovery),
    "resume": (120, resume),
    "refit": (90, refit),
    "decoding": (60, decoding),
    "traps": (30, traps),
}
"""Parts by name, with a time limit in seconds that includes the creation of their models."""

DISK = 50e9
"""Bytes of the working folder: a 7B model, its database, its smaller version, and checkpoints of four blocks."""

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


def run_parts(chosen: list[str], setup: Setup, box: int | None) -> list[Line]:
    """Run parts one after the other, and print each line at once."""
    results: list[Line] = []
    for name in chosen:
        seconds = box or PARTS[name][0]
        process = multiprocessing.get_context("spawn").Process(target=_run_part, args=(name, setup))
        begun = time.monotonic()
        process.start()
        while True:
            try:
                line = setup.lines.get(timeout=1.0)
            except queue.Empty:
                late = time.monotonic() - begun > seconds
                if not late and process.is_alive():
                    continue
                reason = f"took more than {seconds} s" if late else f"its process ended with {process.exitcode}"
                line = Line(name, f"{name} ended early", reason, ok=False)
            if line is None:
                break
            print(line, flush=True)
            results.append(line)
            if line.name.endswith("ended early") and not isinstance(line.value, float):
                if process.is_alive() and time.monotonic() - begun > seconds:
                    process.kill()
                    break
                if not process.is_alive():
                    break
        process.join(10)
        took = Line(name, f"{name} took", time.monotonic() - begun, "s")
        print(took, flush=True)
        results.append(took)
    return results


def plans(device: str) -> list[Line]:
    """Planned hours of the shipped recipes, from pieces of their work on this device."""
    from transformers import AutoConfig

    from darwinlm.families.checkpoint import Checkpoint
    from darwinlm.planning.plan import plan_here
    from darwinlm.planning.sizes import Sizes
    from darwinlm.recipe import load_recipe
    from darwinlm.recipe.settled import settled

    kind, lines = torch.device(device), []
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        config = AutoConfig.for_model("llama", **sizes, num_key_value_heads=32, vocab_size=32000)
        config.max_position_embeddings = 4096
        config.save_pretrained(folder)
        for name in PLANNED:
            recipe = settled(load_recipe(name, (), {"model": folder}), kind)
            plan = plan_here(Sizes(Checkpoint.describe(Path(folder)), recipe), kind)
            lines += [Line("plan", f"{name} {row.stage}", plan.seconds(row)[0] / 60, "min") for row in plan.rows]
            lines.append(Line("plan", f"{name} all", plan.seconds()[0] / 3600, "h"))
    return lines


def main() -> None:
    """Parse options, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="small shapes, no bounds on speed")
    parser.add_argument("--part", action="append", choices=PARTS, help="run only this part; repeatable")
    parser.add_argument("--work", type=Path, help="folder for models and databases; a temporary one by default")
    options = parser.parse_args()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; --device cpu --tiny runs all parts on small shapes")
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        free = shutil.disk_usage(work).free
        if not options.tiny and free < DISK:
            parser.error(f"{work} has {free / 1e9:.0f} GB, {DISK / 1e9:.0f} GB are needed: give a folder with --work")
        lines: Any = multiprocessing.get_context("spawn").Queue()
        setup = Setup(options.device, tiny=options.tiny, work=Path(work), lines=lines)
        results = run_parts(options.part or list(PARTS), setup, TINY_BOX if options.tiny else None)
    planned = plans(options.device) if "machine" in (options.part or PARTS) and not options.tiny else []
    for line in planned:
        print(line)
    results += planned
    failed = [line.name for line in results if line.ok is False]
    options.out.write_text(json.dumps({"failed": failed, "lines": [asdict(line) for line in results]}, indent=1))
    print(f"{len(failed)} of {len(results)} lines failed{': ' if failed else ''}{', '.join(failed)}; {options.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
