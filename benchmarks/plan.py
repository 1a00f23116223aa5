"""`darwinlm plan` against what a run takes: seconds of the stages that compute, on this machine's CPU.

Prints one JSON line per stage: seconds planned and taken, their ratio, memory planned and the process's peak so far
(libraries included). The CPU is measured right before and right after each stage, and the plan uses the mean, so that
other load on the machine falls on both sides; the load average is part of the result. The default model and text are
the demo's.

    python benchmarks/plan.py --calibration 16384 --generations 2
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import tempfile
from pathlib import Path

from rich.console import Console

from darwinlm.console import Reporter
from darwinlm.demo import demo_recipe
from darwinlm.pipeline import run_stages
from darwinlm.planning.devices import Device, measure_cpu
from darwinlm.planning.model import Sizes
from darwinlm.planning.plan import make_plan
from darwinlm.recipe import Recipe, merge
from darwinlm.run import Run

STAGES = {"database": (), "search": ("scores",), "refit": (), "evaluate": ("stitch", "export")}
"""Stages that are planned, and those that are timed along with them."""


def between(before: Device, after: Device) -> Device:
    """A device halfway between two measurements."""
    rates = {kind: (rate + after.rates[kind]) / 2 for kind, rate in before.rates.items()}
    return dataclasses.replace(before, rates=rates, bandwidth=(before.bandwidth + after.bandwidth) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; default: the demo's")
    parser.add_argument("--text", help="source; default: the demo's")
    parser.add_argument("--calibration", type=int, default=65536)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    options = parser.parse_args()
    recipe = demo_recipe(
        (
            f"text.calibration_tokens={options.calibration}",
            f"refit.tokens={options.calibration}",
            f"search.generations={options.generations}",
            "compute.device=cpu",
            *options.settings,
        )
    )
    recipe = merge(recipe, (), {"model": options.model, "text.source": options.text})
    with tempfile.TemporaryDirectory() as folder:
        run_stages(opened(recipe, folder), "plan")
        for stage, others in STAGES.items():
            measure_cpu.cache_clear()
            before = measure_cpu()
            run = opened(recipe, folder)
            run_stages(run, stage)
            measure_cpu.cache_clear()
            device = between(before, measure_cpu())
            plan = make_plan(Sizes(run.checkpoint, recipe), device)
            need = next((need for need in plan.needs if need.name == stage), None)
            if need is None:
                continue
            taken = sum(entry["seconds"] for entry in run.timings if entry["name"] in (stage, *others))
            planned = need.seconds(device)
            line = {
                "benchmark": "plan",
                "stage": stage,
                "planned_s": round(planned, 1),
                "taken_s": round(taken, 1),
                "ratio": round(planned / taken, 2),
                "passes": f"{need.passes:.3g}",
                "products": {kind: f"{count:.3g}" for kind, count in need.operations.items()},
                "moved": f"{need.moved:.3g}",
                "rates": {kind: f"{rate:.3g}" for kind, rate in device.rates.items()},
                "bandwidth": f"{device.bandwidth:.3g}",
                "planned_memory_mb": round(need.device_bytes(device) / 2**20),
                "peak_so_far_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "device": device.source,
                "load": round(os.getloadavg()[0], 1),
            }
            print(json.dumps(line), flush=True)


def opened(recipe: Recipe, folder: str) -> Run:
    """The run, opened anew: what is done is reused."""
    return Run(recipe, Path(folder) / "run", Reporter(Console(quiet=True)))


if __name__ == "__main__":
    main()
