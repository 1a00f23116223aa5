"""`darwinlm plan` against what a run takes: seconds of the stages that compute, on this machine's CPU.

Prints one JSON line per stage: seconds planned and taken, and their ratio; then one with the peak memory of the whole
process. The CPU is measured right before and right after the run, and the plan uses the mean, so that other load on the
machine falls on both sides; the load average is part of the result. The default model and text are the demo's.

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
from darwinlm.recipe import load_recipe, merge
from darwinlm.run import Run


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
    parser.add_argument("--until", default="evaluate", choices=["database", "search", "refit", "evaluate"])
    options = parser.parse_args()
    settings = (
        f"text.calibration_tokens={options.calibration}",
        f"refit.tokens={options.calibration}",
        f"search.generations={options.generations}",
    )
    recipe = demo_recipe(settings)
    recipe = merge(recipe, (), {"model": options.model, "text.source": options.text, "compute.device": "cpu"})
    recipe = load_recipe(None, (), recipe.model_dump())
    with tempfile.TemporaryDirectory() as folder:
        before = measure_cpu()
        run = Run(recipe, Path(folder) / "run", Reporter(Console(quiet=True)))
        run_stages(run, options.until)
        measure_cpu.cache_clear()
        device = between(before, measure_cpu())
        taken = {entry["name"]: entry["seconds"] for entry in run.timings}
        plan = make_plan(Sizes(run.checkpoint, recipe), device)
        for need in plan.needs:
            if need.name in taken:
                planned = need.seconds(device)
                line = {
                    "benchmark": "plan",
                    "stage": need.name,
                    "planned_s": round(planned, 1),
                    "taken_s": taken[need.name],
                    "ratio": round(planned / taken[need.name], 2),
                    "flops": need.flops,
                    "moved": need.moved,
                }
                print(json.dumps(line))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        planned_peak = max(need.device_bytes(device) for need in plan.needs)
        machine = {
            "source": device.source,
            "rates": {kind: f"{rate:.3g}" for kind, rate in device.rates.items()},
            "before": {kind: f"{rate:.3g}" for kind, rate in before.rates.items()},
            "bandwidth": f"{device.bandwidth:.3g}",
            "load": round(os.getloadavg()[0], 1),
        }
        print(json.dumps({"benchmark": "plan", "planned_peak": planned_peak, "peak": peak, "machine": machine}))


if __name__ == "__main__":
    main()
