"""Acceptance on a node: what several processes share, against one of them alone, each with a GPU of its own.

    torchrun --standalone --nproc-per-node 8 -m lab.benchmarks.gpu_node --device cuda --out node.json

Lines are those of `gpu.py`; the first process prints and writes them. `--tiny --device cpu` runs everything on small
shapes with gloo, without bounds on speed: a test does that with two processes.
"""

from __future__ import annotations

import argparse
import json
import queue
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from darwinlm.pipeline import prune
from darwinlm.recipe import load_recipe
from darwinlm.runs.opening import open_run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.console import Reporter
from lab.benchmarks.gpu_stages import model_of, recovered
from lab.benchmarks.gpu_units import Line, Setup

SPEED_UP = 5 / 8
"""Least speed-up for each process, of stages without work that one of them does alone."""

STAGES = {"database": True, "search": False, "refit": False, "recover": True, "evaluate": False}
"""Stages that processes share, and whether the speed-up has a bound."""

SAME = 0.02
"""Largest relative difference of a figure in bfloat16, whose rounding depends on the batches. Our choice."""

SAME_FLOAT32 = 1e-3
"""The same in float32, and of the database's error curves, which are sums in float32."""


def all_reduce(setup: Setup) -> None:
    """Sums of second moments of one 7B MLP."""
    tensor = torch.ones(96 if setup.tiny else 11008, 96 if setup.tiny else 11008, device=setup.kind)
    seconds = setup.seconds(lambda: parallel.all_reduce(tensor))
    setup.told("node", f"sum of {tensor.nbytes / 1e6:.3g} MB", tensor.nbytes / seconds / 1e9, "GB/s")


def stages(setup: Setup) -> None:
    """Four blocks of 7B up to the evaluation in all processes; then each stage again in the first one alone."""
    with parallel.main_first():
        model = model_of(setup, 4).folder
        _text(setup)
    together, alone = setup.work / "together", setup.work / "alone"
    shared = _run_up_to("evaluate", setup, model, together)
    single: dict[str, float] = {}
    with parallel.main_first():
        if parallel.is_main():
            shutil.copytree(together, alone)
            for stage in reversed(STAGES):  # the last one first, so that its inputs are still those of all processes
                shutil.rmtree(alone / "stages" / stage)
                single |= _run_up_to(stage, setup, model, alone)
    if not parallel.is_main():
        return
    for stage, bounded in STAGES.items():
        setup.told("node", f"{stage} took", shared[stage], "s")
        floor = SPEED_UP * parallel.size() if bounded else None
        setup.fast("node", f"{stage}: speed-up", single[stage] / shared[stage], "", floor)
        ours, theirs = (_figures(stage, folder / "stages" / stage) for folder in (together, alone))
        differs = max(
            float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(ours, theirs, strict=True)
        )
        most = SAME_FLOAT32 if setup.tiny or stage == "database" else SAME
        setup.most("node", f"{stage}: figures differ by", differs, "relative", most)


NAMES = {
    "search": ("uniform_kl", "kl"),
    "refit": ("kl_before", "kl_after"),
    "recover": ("eval_perplexity", "eval_kl"),
    "evaluate": ("perplexity", "kl"),
}
"""Compared figures; of an evaluation those of all models."""


def _figures(stage: str, folder: Path) -> list[torch.Tensor]:
    """What a stage has found."""
    if stage == "database":
        blocks = (load_file(path) for path in sorted(folder.glob("block_*.safetensors")))
        return [tensor for block in blocks for name, tensor in sorted(block.items()) if name.endswith("errors")]
    found = read_json(folder / {"search": "result.json", "evaluate": "models.json"}.get(stage, "record.json"))
    if stage == "evaluate":
        rows = list(found.values())
    else:
        rows = [found["record"] if stage == "search" else found["log"][-1] if stage == "recover" else found]
    return [torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in NAMES[stage]]


def _text(setup: Setup) -> Path:
    from tests.tiny.checkpoint import tiny_text
    from tests.tiny.tokenizer import tiny_tokenizer

    tiny_tokenizer().save_pretrained(setup.work / "llama-4")
    text = setup.work / "text.txt"
    return text if text.exists() else tiny_text(text, 400 if setup.tiny else 20000)


TINY = ("recovery.tokens=512", "recovery.batch_tokens=128")
LARGE = (
    "text.sequence_length=2048",
    "text.calibration_tokens=262144",
    "text.evaluation_tokens=65536",
    "search.rounds=[{tokens: 8192, survivors: 2}, {tokens: 32768, survivors: 1}]",
    "refit.tokens=262144",
    "recovery.tokens=524288",
    "recovery.batch_tokens=131072",
    "recovery.gradient_checkpointing=true",
    "compute.batch_tokens=8192",
    "compute.dtype=bfloat16",
    "units.mlp_multiple=256",
)


def _run_up_to(stage: str, setup: Setup, model: Path, folder: Path) -> dict[str, float]:
    """Run the pipeline; return the seconds of the stages that weren't there."""
    from rich.console import Console
    from tests.tiny.checkpoint import SETTINGS

    named = {
        "model": str(model),
        "text.source": str(_text(setup)),
        "budget.keep": "60%",
        "compute.device": setup.device,
    }
    run = open_run(
        load_recipe(None, (*SETTINGS, *(TINY if setup.tiny else LARGE)), named), folder, Reporter(Console(quiet=True))
    )
    run.until = stage
    prune(run)
    return {entry.name: entry.seconds for entry in run.times if not entry.reused}


def recovery(setup: Setup) -> None:
    """Recovery with weights dealt out, and the main memory of all processes together."""
    with parallel.main_first():
        from lab.benchmarks.gpu_stages import smaller_model

        smaller_model(setup, 4)
    record, rate = recovered(setup, 4, "dealt out", "recovery.sharding=fsdp")
    setup.told("node", "recovery with fsdp: tokens trained", rate, "a second")
    sharded = record["sharded"]
    setup.put(Line("node", "weights were dealt out", str(sharded), ok=sharded or parallel.size() == 1))
    held = sum(parallel.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    setup.told("node", "main memory of all processes at their peaks", held / 1e9, "GB")
    setup.peak("node")


PARTS: tuple[Callable[[Setup], None], ...] = (all_reduce, stages, recovery)


def main() -> None:
    """Parse options, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("node.json"))
    parser.add_argument("--work", type=Path, help="folder for models and runs; a temporary one by default")
    parser.add_argument("--tiny", action="store_true", help="small shapes, no bounds on speed")
    options = parser.parse_args()
    parallel.init_from_environment()
    if torch.cuda.is_available() and options.device == "cuda":
        torch.cuda.set_device(parallel.gpu())
    found: list[Line] = []
    with tempfile.TemporaryDirectory(dir=options.work) as own:
        lines: Any = queue.SimpleQueue()
        setup = Setup(options.device, tiny=options.tiny, work=Path(parallel.broadcast(own)), lines=lines)
        for part in PARTS:
            part(setup)
            while not lines.empty():
                found.append(lines.get())
                if parallel.is_main():
                    sys.stdout.write(f"{found[-1]}\n")
                    sys.stdout.flush()
        parallel.gather(None)
    failed = [line.name for line in found if line.ok is False]
    if parallel.is_main():
        options.out.write_text(json.dumps({"failed": failed, "lines": [asdict(line) for line in found]}, indent=1))
    parallel.shutdown()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
