"""The work of `make demo` on the pretend GPU, then on the CPU in the same element type, and the KL of both.

    python -m tests.gpu.demo runs/gpu-demo

Rerun it to resume.
On 2026-12-01, when the demo cut blocks alone, the saved models had a KL of 0.148 and 0.135, uniform ones 0.195 and
0.201, after 434,642 kernels: attention is rounded to bfloat16 in other places there, so some removal orders differ. In
float32 results agree (`test_gpu_pipeline.py`).
"""

import sys
from pathlib import Path

from rich.console import Console

from darwinlm import pipeline
from darwinlm.report.summary import Summary
from darwinlm.runs.demo_recipe import demo_recipe
from darwinlm.runs.pruning import open_size
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.console import Reporter
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME


def run_demo(folder: Path, *assignments: str) -> Summary:
    recipe = demo_recipe(assignments)
    run = open_size(recipe, folder, Reporter(Console(stderr=True)), until=pipeline.REPORT, begun=working_time())
    found = pipeline.prune(run)
    assert found is not None
    return found


def main(folder: Path) -> None:
    with pretend_gpu() as gpu:
        there = run_demo(folder / NAME)
    assert not gpu.tally.mixes, gpu.tally.mixes
    print(f"{sum(gpu.tally.kernels.values()):,} kernels, {gpu.peak / 1e9:.1f} GB at the peak")
    here = run_demo(folder / "cpu", "compute.device=cpu", "compute.dtype=bfloat16")
    for name, model in there.models.items():
        print(f"{name}: KL {model.kl:.4f}, on the CPU {here.models[name].kl:.4f}")
    print(f"saved: KL {there.saved.kl:.4f}, on the CPU {here.saved.kl:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
