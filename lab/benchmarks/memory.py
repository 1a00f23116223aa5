"""Planned and measured memory and time of each stage of a run, on a random Llama, the demo's model or another.

Of the machine's memory, what is anonymous counts: what a process holds besides mapped files, whose pages the system
takes back when it needs them. Every stage runs in a separate process. `compute.memory` bounds its caches. Seconds are
processor time with one thread. The text is the demo's; random models have the demo's tokenizer.

    python -m lab.benchmarks.memory --model demo --set refit.tokens=4096       # 135M
    python -m lab.benchmarks.memory --set compute.memory=2GB                   # 1.17B parameters within 2.0 GB
    python -m lab.benchmarks.memory --shape small --layers 16 --layers 64      # the same peak for both
    python -m lab.benchmarks.memory --shape llama-2-7b --layers 2              # two blocks of the size of Llama-2-7B's
    python -m lab.benchmarks.memory --shape llama-2-7b --layers 32 --device cuda --set compute.memory=24GB
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from darwinlm.pipeline import ORDER, prune
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runs.demo_recipe import demo_model, demo_recipe
from darwinlm.runs.opening import open_run
from darwinlm.runs.plan_model import plan_of
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.run import Run
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.source.whole_model import open_model
from lab.benchmarks.random_llama import write_llama

LITTLE = (
    "compute.batch_tokens=1024",
    "text.sequence_length=128",
    "text.calibration_tokens=2048",
    "text.evaluation_tokens=1024",
    "search.generations=2",
    "search.rounds=[{tokens: 256, survivors: 2}, {tokens: 512, survivors: 1}]",
    "refit.tokens=2048",
    "recovery.tokens=0",
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


def opened(recipe: Recipe, folder: Path) -> Run[Recipe]:
    """Open the run again, to reuse its finished stages."""
    return open_run(recipe, folder, Reporter(Console(quiet=True)))


def prepare(recipe: Recipe, folder: Path, stage: str) -> None:
    """Run all stages before one of them."""
    run = opened(recipe, folder)
    if stage != ORDER[0]:
        run.until = ORDER[ORDER.index(stage) - 1]
        prune(run)


def alone(action: Any, *arguments: Any) -> Any:
    """Call a function in a separate process, which gives it a separate memory peak."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(action, *arguments).result()


def random_model(folder: Path, **sizes: Any) -> Path:
    """Write a random Llama with the vocabulary of the demo's tokenizer, and that tokenizer."""
    from transformers import AutoTokenizer

    write_llama(folder, vocab_size=49152, **sizes)
    demo = demo_model()
    AutoTokenizer.from_pretrained(demo.parent, gguf_file=demo.name).save_pretrained(folder)
    return folder


def planned(recipe: Recipe, folder: Path) -> dict[str, dict[str, float]]:
    """Planned bytes and seconds by stage."""
    run = opened(recipe, folder)
    plan = plan_of(RunSizes(open_model(run.context, run.recipe.model), run.recipe), run.context.device)
    return {row.step: {"planned_gb": row.cost.bytes / 1e9, "planned_s": plan.seconds(row)[0]} for row in plan.rows}


def watched(recipe: Recipe, folder: Path, stage: str) -> dict[str, Any]:
    """Run one stage in this process and return the peak of its memory and its processor time."""
    peak, ended = anonymous(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    prepare(recipe, folder, stage)
    run = opened(recipe, folder)
    run.until, begun = stage, time.process_time()
    prune(run)
    seconds = time.process_time() - begun
    ended.set()
    thread.join()
    used = {"peak_gb": peak / 1e9, "s": seconds}
    return used if recipe.compute.device == "cpu" else used | {"gpu_gb": torch.cuda.max_memory_allocated() / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, GGUF file or hub id in place of a random model; demo is the demo's")
    parser.add_argument("--shape", choices=SHAPES, default="1.17b")
    parser.add_argument("--layers", type=int, action="append", help="number of blocks; default 22; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--stages", nargs="*", help="default: all that are planned")
    parser.add_argument("--out", type=Path, help="folder; default: a temporary one")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="darwinlm-") as work:
        models = {}
        for layers in (0,) if options.model else options.layers or [22]:
            folder = (options.out or Path(work)) / f"{options.shape}-{layers}"
            names = "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"
            sizes = dict(zip(names, SHAPES[options.shape], strict=True)) | {"num_hidden_layers": layers}
            model = str(demo_model()) if options.model == "demo" else options.model or str(folder / "model")
            if not options.model and not (folder / "model" / "config.json").exists():
                random_model(folder / "model", **sizes)
            settings = *LITTLE, f"compute.device={options.device}", *options.settings
            recipe = load_recipe(demo_recipe(settings), (), {"model": model})
            models[model] = recipe, folder / "run", alone(planned, recipe, folder / "run")
        stages = options.stages or [*next(iter(models.values()))[2]]
        for stage in stages:
            for model, (recipe, folder, plan) in models.items():
                alone(prepare, recipe, folder, stage)
                row = plan[stage] | alone(watched, recipe, folder, stage)
                row = {name: float(f"{value:.3g}") for name, value in row.items()}
                row |= {"model": Path(model).parent.name, "stage": stage, "load": round(os.getloadavg()[0], 1)}
                print(json.dumps({"benchmark": "memory", **row}), flush=True)


if __name__ == "__main__":
    main()
