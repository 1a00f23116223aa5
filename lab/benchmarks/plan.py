"""`darwinlm plan` against a real run: seconds and peak memory of the stages that compute, on this machine's CPU.

Every stage runs in a separate process and prints one JSON line: planned and actual seconds, planned and actual peak
memory, and both ratios. The machine is measured right before each stage. With `--clock cpu` and one thread, seconds are
processor time, so that other load on the machine doesn't count. The load is part of the result. The default model and
text are the demo's. Results in OUT are reused, and not timed.

    python -m lab.benchmarks.plan --set text.calibration_tokens=16384 --set search.generations=2
    python -m lab.benchmarks.plan --random --set text.calibration_tokens=2048 --set refit.tokens=0   # 1.1B parameters
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from darwinlm.execution.run import Run
from darwinlm.needs.sizes import Sizes
from darwinlm.pipeline import PRUNE, open_run
from darwinlm.planning.devices import find_device
from darwinlm.planning.plan import make_plan
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runs.demo import demo_recipe
from darwinlm.runtime.console import Reporter
from darwinlm.stages.model import DENSE
from lab.benchmarks.random_llama import write_llama

STAGES = tuple(stage.name for stage in PRUNE if stage.need is not None)
"""Planned stages."""

RANDOM: dict[str, Any] = {
    "num_hidden_layers": 22,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 49152,
}
"""Config of a Llama of 1.1B parameters, with the vocabulary of the demo's tokenizer."""

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def peak_bytes() -> int:
    """Largest resident set of this process. Linux's ru_maxrss would include the parent's memory at the start."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def opened(recipe: Recipe, folder: Path) -> Run:
    """Open the run again, to reuse its finished stages."""
    return open_run(recipe, folder, Reporter(Console(quiet=True)))


def prepare(recipe: Recipe, folder: Path, stage: str) -> None:
    """Run all stages before one of them."""
    before = PRUNE.steps[: PRUNE.steps.index(stage)]
    if before:
        opened(recipe, folder).until(before[-1])


def measure(recipe: Recipe, folder: Path, stage: str, clock: str) -> dict[str, Any] | None:
    """Run one stage in this process; None if the recipe lacks it or its result existed."""
    now, run = CLOCKS[clock], opened(recipe, folder)
    plan = make_plan(Sizes(run[DENSE], run.recipe), find_device("cpu"))
    need = next((need for need in plan.needs if need.name == stage), None)
    if need is None:
        return None
    begun = now()
    planned, parts = need.seconds(plan.rates), need.parts(plan.rates)
    measuring = now() - begun
    for name in PRUNE.before(stage)[:-1]:
        run.result(name)
    begun = now()
    run.result(stage)
    taken, peak = now() - begun, peak_bytes()
    if any(entry.reused for entry in run.times if entry.name == stage):
        return None
    return {
        "benchmark": "plan",
        "model": run[DENSE].source,
        "stage": stage,
        "planned_s": round(planned, 1),
        "taken_s": round(taken, 1),
        "ratio": round(planned / taken, 2),
        "planned_memory_mb": round(need.device_bytes / 1e6),
        "peak_memory_mb": round(peak / 1e6),
        "memory_ratio": round(need.device_bytes / peak, 2),
        "flops": f"{need.flops:.3g}",
        "planned_parts_s": {kind: round(seconds, 1) for kind, seconds in parts.items()},
        "measuring_s": round(measuring, 1),
        "clock": clock,
        "load": round(os.getloadavg()[0], 1),
    }


def alone(action: Any, *arguments: Any) -> Any:
    """Call a function in a separate process, which gives it a separate memory peak."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(action, *arguments).result()


def random_model(folder: Path, **sizes: int) -> Path:
    """Write the random model, with other sizes if given, and the demo's tokenizer."""
    from transformers import AutoTokenizer

    from darwinlm.runs.demo import demo_model

    write_llama(folder, **{**RANDOM, **sizes})
    demo = demo_model()
    AutoTokenizer.from_pretrained(demo.parent, gguf_file=demo.name).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; default: the demo's")
    parser.add_argument("--random", action="store_true", help="a random Llama of 1.1B parameters")
    parser.add_argument("--text", help="source; default: the demo's")
    parser.add_argument("--out", type=Path, help="folder of the run; default: a temporary one")
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out and options.out.parent) as work:
        model = str(random_model(Path(work) / "model")) if options.random else options.model
        recipe = demo_recipe(("compute.device=cpu", *options.settings))
        recipe = load_recipe(recipe, (), {"model": model, "text.source": options.text})
        folder = options.out or Path(work) / "run"
        for stage in options.stages:
            alone(prepare, recipe, folder, stage)
            line = alone(measure, recipe, folder, stage, options.clock)
            if line is not None:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
