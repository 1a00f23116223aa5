"""Peak memory of each stage of a run on a random Llama, beside the plan's, on a machine or a GPU with little memory.

Of the machine's memory, what is anonymous counts: what a process holds besides mapped files, whose pages the system
takes back when it needs them. Every stage runs in a separate process that sees its planned memory, or `--memory`, as
that of its device, so that caches take what is left of it. Nothing enforces the limit: the table shows whether the
stages keep it. The model has the demo's tokenizer, and the text is the demo's.

    python -m lab.benchmarks.memory --memory 2.0                               # 1.17B parameters within 2.0 GB
    python -m lab.benchmarks.memory --shape small --layers 16 --layers 64      # the same peak for both
    python -m lab.benchmarks.memory --shape llama-2-7b --layers 2              # two blocks of the size of Llama-2-7B's
    python -m lab.benchmarks.memory --shape llama-2-7b --layers 32 --device cuda --memory 24   # a card of 24 GB
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from darwinlm.needs.sizes import Sizes
from darwinlm.planning.devices import find_device
from darwinlm.planning.plan import estimate
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runs.demo import demo_recipe
from darwinlm.stages.model import DENSE
from lab.benchmarks.plan import STAGES, alone, opened, prepare, random_model

LITTLE = (
    "compute.batch_tokens=1024",
    "text.sequence_length=128",
    "text.calibration_tokens=2048",
    "text.validation_tokens=512",
    "text.evaluation_tokens=1024",
    "search.generations=2",
    "search.rounds=[{tokens: 256, survivors: 2}, {tokens: 512, survivors: 1}]",
    "refit.tokens=2048",
    "recovery.tokens=0",
    "evaluation.prompts=[]",
    "budget.keep=0.5",
)
"""Little text, since memory is measured, not quality."""

SHAPES = {
    "small": (512, 1408, 8, 1),
    "1.17b": (2048, 5632, 32, 4),
    "llama-2-7b": (4096, 11008, 32, 32),
    "llama-3-70b": (8192, 28672, 64, 8),
}
"""Width, width of an MLP, heads and key/value heads. Any of them has the vocabulary of the demo's tokenizer."""


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def planned(recipe: Recipe, folder: Path, memory: float | None) -> dict[str, dict[str, float]]:
    """Planned bytes of the machine and of the GPU by stage, on a device with so many bytes, or on this one."""
    run, device = opened(recipe, folder), find_device(recipe.compute.device)
    needs = estimate(Sizes(run[DENSE], run.recipe), replace(device, memory=memory or device.memory))
    return {need.name: _by_place(need.ram_bytes, None if need.on_cpu else need.device_bytes) for need in needs}


def _by_place(machine: float, gpu: float | None) -> dict[str, float]:
    """Bytes by what stands before the name of their column; None where there is no GPU."""
    return {"": machine} if gpu is None else {"": machine, "gpu_": gpu}


def limited(device: str, memory: float) -> Any:
    """A context in which a device has so many bytes."""

    def available(_: Path) -> int:
        return max(int(memory) - anonymous(), 0)

    def card(*_: Any) -> tuple[int, int]:
        return max(int(memory) - torch.cuda.memory_reserved(), 0), int(memory)

    if device == "cpu":
        return mock.patch("darwinlm.runtime.memory._available", side_effect=available)
    return mock.patch("torch.cuda.mem_get_info", side_effect=card)


def watched(recipe: Recipe, folder: Path, stage: str, memory: float) -> dict[str, Any]:
    """Run one stage in this process and return the peak of its memory."""
    peak, ended = anonymous(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.perf_counter()
    with limited(recipe.compute.device, memory):
        opened(recipe, folder).until(stage)
    ended.set()
    thread.join()
    gpu = None if recipe.compute.device == "cpu" else torch.cuda.max_memory_allocated()
    return {"stage": stage, "peak": _by_place(peak, gpu), "seconds": round(time.perf_counter() - begun)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.17b")
    parser.add_argument("--layers", type=int, action="append", help="number of blocks; default 22; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", type=float, help="GB that the device has; default: what the plan says")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--out", type=Path, help="folder; default: a temporary one")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    options = parser.parse_args()
    memory = options.memory and options.memory * 1e9
    with tempfile.TemporaryDirectory(prefix="darwinlm-") as work:
        models = {}
        for layers in options.layers or [22]:
            folder = (options.out or Path(work)) / f"{options.shape}-{layers}"
            names = "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"
            sizes = dict(zip(names, SHAPES[options.shape], strict=True)) | {"num_hidden_layers": layers}
            if not (folder / "model" / "config.json").exists():
                random_model(folder / "model", **sizes)
            settings = *LITTLE, f"compute.device={options.device}", *options.settings
            recipe = load_recipe(demo_recipe(settings), (), {"model": str(folder / "model")})
            models[layers] = recipe, folder / "run", alone(planned, recipe, folder / "run", memory)
        for stage in options.stages:
            for layers, (recipe, folder, plan) in models.items():
                if stage not in plan:
                    continue
                alone(prepare, recipe, folder, stage)
                row = alone(watched, recipe, folder, stage, memory or [*plan[stage].values()][-1])
                for what, places in (("peak", row.pop("peak")), ("planned", plan[stage])):
                    row |= {f"{place}{what}_gb": round(size / 1e9, 3) for place, size in places.items()}
                row["load"] = round(os.getloadavg()[0], 1)
                print(json.dumps({"benchmark": "memory", "shape": options.shape, "layers": layers, **row}), flush=True)


if __name__ == "__main__":
    main()
