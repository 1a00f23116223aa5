"""Peak memory and time of building the database of a random Llama, read from its shards one block at a time.

Prints one JSON line. By default the model has 1.1B parameters (22 blocks, 2048 wide, 5632 MLP channels, 32 heads over 4
KV heads, bfloat16, 2.2 GB on disk). The measured work runs in a separate process. `--factorise N` orders and factorises
the last N blocks only: the others only run forward, which needs less memory and much less time. With fewer tokens than
channels the second moments are singular. The removal order may then need float64 and one more matrix of that type.
`--gradients` also measures the output gradients that weight the order, on the same tokens. This keeps the residual
streams before all blocks, in the place that `--hidden-states` names, or else where there is room.

    python -m lab.benchmarks.calibration --factorise 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from darwinlm.calibration.gradients import output_gradients
from darwinlm.database.blocks import block_file
from darwinlm.database.build import build_database
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import UnitsSettings
from darwinlm.runtime.artifact import StageFolder, write_tensors
from darwinlm.runtime.memory import kept_memory
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.stream import BlockStream
from lab.benchmarks.random_llama import write_llama


def peak_bytes() -> int:
    """Largest resident set of this process. Linux's ru_maxrss would include the parent's memory at the start."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(model: Path, out: Path, options: argparse.Namespace) -> dict[str, object]:
    from transformers import LlamaForCausalLM  # noqa: F401 - its own memory belongs to the start

    start = peak_bytes()
    checkpoint = Checkpoint.open(model)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[options.dtype]
    generator = torch.Generator().manual_seed(1)
    rows = -(-options.tokens // options.sequence)
    tokens = torch.randint(0, checkpoint.config.vocab_size, (rows, options.sequence), generator=generator)
    stage = StageFolder(out, {"benchmark": "calibration"})
    stage.begin()
    for block in range(max(0, checkpoint.n_blocks - options.factorise)):
        write_tensors(out / block_file(block), {"skipped": torch.zeros(1)})  # marks the block as done by an earlier run
    begun = time.perf_counter()
    stream = BlockStream(
        checkpoint,
        tokens,
        dtype=dtype,
        device=torch.device(options.device),
        batch_tokens=options.batch_tokens,
        memory=HiddenMemory(out, options.hidden_states),
    )
    build_database(stage, stream, UnitsSettings(attention=options.units))
    database_peak = peak_bytes()
    place = stream.hidden.place
    if options.gradients:
        del stream
        place = run_gradients(checkpoint, tokens, dtype, out, options)
    seconds = time.perf_counter() - begun
    hidden = tokens.numel() * checkpoint.config.hidden_size * dtype.itemsize
    streams = hidden * (checkpoint.n_blocks + 1) if options.gradients else hidden
    weights = sum((model / shard).stat().st_size for shard in set(checkpoint.stored.shards.values()))
    stored = sum(path.stat().st_size for path in sorted(out.glob("block_*"))[-options.factorise :])
    return {
        "benchmark": "calibration",
        "blocks": checkpoint.n_blocks,
        "factorised": min(options.factorise, checkpoint.n_blocks),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(seconds, 1),
        "checkpoint_bytes": weights,
        "hidden_bytes": streams,
        "hidden_states": place,
        "start_bytes": start,
        "database_peak_bytes": database_peak,
        "peak_bytes": peak_bytes(),
        "share_of_checkpoint": round((peak_bytes() - (0 if place == "file" else streams)) / weights, 3),
        "stored_bytes": stored,
    }


def run_gradients(
    checkpoint: Checkpoint, tokens: torch.Tensor, dtype: torch.dtype, out: Path, options: argparse.Namespace
) -> str:
    """Compute second moments of all output gradients, as the saliency stage does.

    Returns:
        Place of the residual stream.
    """
    memory = HiddenMemory(out, options.hidden_states)
    device = torch.device(options.device)
    stream = BlockStream(
        checkpoint, tokens, dtype=dtype, device=device, batch_tokens=options.batch_tokens, memory=memory
    )
    with kept_memory(device):
        for block, moments in output_gradients(stream, tokens, memory):
            write_tensors(out / f"gradients_{block}.safetensors", {str(kind): S for kind, S in moments.items()})
    return stream.hidden.place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "layers": 22,
        "hidden": 2048,
        "intermediate": 5632,
        "heads": 32,
        "kv-heads": 4,
        "vocabulary": 32000,
        "tokens": 8192,
        "sequence": 512,
        "batch-tokens": 512,
        "factorise": 22,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="element type of checkpoint and forward passes",
    )
    parser.add_argument("--hidden-states", choices=["device", "host", "file"], help="default: where there is room")
    parser.add_argument(
        "--gradients", action="store_true", help="also measure the output gradients that weight the order"
    )
    parser.add_argument("--units", default="kv_group")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, help="folder for model and database; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        sizes = {
            "num_hidden_layers": options.layers,
            "hidden_size": options.hidden,
            "intermediate_size": options.intermediate,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.kv_heads,
            "vocab_size": options.vocabulary,
        }
        model = Path(work) / "model"
        write_llama(model, dtype=getattr(torch, options.dtype), **sizes)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            result = pool.submit(measure, model, Path(work) / "database", options).result()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
