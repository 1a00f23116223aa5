"""Training steps with freed memory kept by the process, alternating with glibc's defaults.

The model is the demo's dense one in float32 with bfloat16 passes, trained on the stored likeliest tokens. A step is
forward and backward, without the optimiser. Prints one JSON line.

    python benchmarks/malloc.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from darwinlm.models.resolve import resolve_model
from darwinlm.recovery.model import batch_loss, dense_top
from darwinlm.runs.demo import demo_model
from darwinlm.runtime.memory import kept_memory

CPU = torch.device("cpu")


def seconds(work: Callable[[], object], *, kept: bool) -> float:
    """Seconds of one call, without the first one."""
    with kept_memory(CPU) if kept else nullcontext():
        work()
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    with TemporaryDirectory() as work:
        checkpoint = resolve_model(str(demo_model()), Path(work))
        trained, dense = checkpoint.load(torch.float32), checkpoint.load(torch.bfloat16)
    trained.requires_grad_(requires_grad=True).train()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(checkpoint.config.vocab_size), (options.tokens // 512, 512), generator=generator)
    known = dense_top(dense, tokens, 64)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = batch_loss(trained, None, tokens, known, 1.0)
        loss.backward()  # type: ignore[no-untyped-call]

    row: dict[str, object] = {"benchmark": "malloc", "tokens": options.tokens, "threads": torch.get_num_threads()}
    pairs = [(seconds(step, kept=False), seconds(step, kept=True)) for _ in range(options.rounds)]
    ratios = [plain / kept for plain, kept in pairs]
    row["training_s"] = [[round(value, 2) for value in pair] for pair in pairs]
    row["training_ratio"] = [round(value, 3) for value in (min(ratios), statistics.median(ratios), max(ratios))]
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
