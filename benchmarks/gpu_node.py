"""Acceptance on a node: what several processes share, against one of them alone, each with a GPU of its own.

    torchrun --standalone --nproc-per-node 8 benchmarks/gpu_node.py --device cuda --out node.json

Lines are those of `gpu.py`; the first process prints and writes them. `--tiny --device cpu` runs everything on small
shapes with gloo, without bounds on speed: a test does that with two processes.
"""

from __future__ import annotations

import argparse
import json
import queue
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from darwinlm import parallel
from darwinlm.console import Reporter
from darwinlm.pipeline import run_stages
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from gpu_stages import model_of, recovered
from gpu_units import Line, Setup

SPEED_UP = 5 / 8
"""Least speed-up for each process."""


def all_reduce(setup: Setup) -> None:
    """Sums of second moments of one 7B MLP."""
    tensor = torch.ones(96 if setup.tiny else 11008, 96 if setup.tiny else 11008, device=setup.kind)
    seconds = setup.seconds(lambda: parallel.all_reduce(tensor))
    setup.told("node", f"sum of {tensor.nbytes / 1e6:.3g} MB", tensor.nbytes / seconds / 1e9, "GB/s")


def database(setup: Setup) -> None:
    """Four blocks of 7B in all processes, then in the first one alone: speed-up, and equal errors."""
    with parallel.main_first():
        checkpoint = model_of(setup, 4)
        _text(setup)
    together, alone = setup.work / "together", setup.work / "alone"
    begun = time.perf_counter()
    _databased(setup, checkpoint.folder, together)
    parallel.barrier()
    shared = time.perf_counter() - begun
    begun = time.perf_counter()
    with parallel.main_first():
        if parallel.place() == 0 and not alone.exists():
            _databased(setup, checkpoint.folder, alone)
    took = parallel.broadcast(time.perf_counter() - begun)
    setup.told("node", "database took", shared, "s")
    floor = SPEED_UP * parallel.size()
    setup.fast("node", "database: speed-up", took / shared, "", floor)
    if parallel.is_main():
        differs = max(_differs(alone / "stages" / "database" / path.name, path) for path in _blocks(together))
        setup.most("node", "database: error curves differ by", differs, "relative", 1e-3)


def _blocks(folder: Path) -> list[Path]:
    return sorted((folder / "stages" / "database").glob("block_*.safetensors"))


def _differs(one: Path, other: Path) -> float:
    a, b = load_file(one), load_file(other)
    curves = [key for key in a if key.endswith("errors")]
    return max(float((a[key] - b[key]).abs().max() / a[key].abs().max().clamp_min(1e-30)) for key in curves)


def _text(setup: Setup) -> Path:
    from tests.tiny.checkpoint import tiny_text
    from tests.tiny.tokenizer import tiny_tokenizer

    tiny_tokenizer().save_pretrained(setup.work / "llama-4")
    text = setup.work / "text.txt"
    return text if text.exists() else tiny_text(text, 400 if setup.tiny else 20000)


def _databased(setup: Setup, model: Path, folder: Path) -> None:
    from rich.console import Console
    from tests.tiny.checkpoint import SETTINGS

    large = ("text.sequence_length=2048", "text.calibration_tokens=262144", "compute.batch_tokens=8192")
    chosen = (*SETTINGS, *(() if setup.tiny else (*large, "units.mlp_multiple=256", "compute.dtype=bfloat16")))
    named = {
        "model": str(model),
        "text.source": str(_text(setup)),
        "budget.keep": "60%",
        "compute.device": setup.device,
    }
    run_stages(Run(load_recipe(None, chosen, named), folder, Reporter(Console(quiet=True))), "database")


def recovery(setup: Setup) -> None:
    """Recovery with weights dealt out, and the main memory of all processes together."""
    with parallel.main_first():
        from gpu_stages import smaller_model

        smaller_model(setup, 4)
    found = recovered(setup, 4, "dealt out", "recovery.sharding=fsdp")
    setup.told("node", "recovery with fsdp: tokens trained", found.rate, "a second")
    sharded = found.record["sharded"]
    setup.put(Line("node", "weights were dealt out", str(sharded), ok=sharded or parallel.size() == 1))
    held = sum(parallel.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    setup.told("node", "main memory of all processes at their peaks", held / 1e9, "GB")
    setup.peak("node")


PARTS: tuple[Callable[[Setup], None], ...] = (all_reduce, database, recovery)


def main() -> None:
    """Parse options, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("node.json"))
    parser.add_argument("--tiny", action="store_true", help="small shapes, no bounds on speed")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' tiny models and text
    parallel.init_from_environment()
    if torch.cuda.is_available() and options.device == "cuda":
        torch.cuda.set_device(parallel.gpu())
    found: list[Line] = []
    with tempfile.TemporaryDirectory() as own:
        lines: Any = queue.SimpleQueue()
        setup = Setup(options.device, tiny=options.tiny, work=Path(parallel.broadcast(own)), lines=lines)
        for part in PARTS:
            part(setup)
            while not lines.empty():
                found.append(lines.get())
                if parallel.is_main():
                    sys.stdout.write(f"{found[-1]}\n")
                    sys.stdout.flush()
        parallel.barrier()
    failed = [line.name for line in found if line.ok is False]
    if parallel.is_main():
        options.out.write_text(json.dumps({"failed": failed, "lines": [asdict(line) for line in found]}, indent=1))
    parallel.shutdown()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
