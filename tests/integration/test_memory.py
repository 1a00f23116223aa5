"""Peak memory of the database stage and of the gradients before it, measured in a process of their own."""

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tests.tiny.models import tiny_model
from tests.tiny.process import SERVER

from darwinlm.database.blocks import block_file
from darwinlm.database.build import build_database
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import UnitsSettings
from darwinlm.runtime.artifact import StageFolder, write_tensors
from darwinlm.runtime.memory import kept_memory
from darwinlm.streaming.gradients import output_gradients
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.stream import BlockStream

WIDTH, CHANNELS = 256, 1024
BLOCK_BYTES = 4 * (4 * WIDTH**2 + 3 * WIDTH * CHANNELS)
CPU = torch.device("cpu")


def peak_bytes() -> int:
    """Largest resident set of this process. Linux's ru_maxrss would include the parent's memory at the start."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(model: Path, out: Path) -> tuple[int, int]:
    """Peaks behind the database, of which the last block is factorised, and behind the gradients."""
    checkpoint = Checkpoint.open(model)
    tokens = torch.randint(0, checkpoint.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    memory = HiddenMemory(out, "file")
    stage = StageFolder(out, {"test": "memory"})
    stage.begin()
    for block in range(checkpoint.n_blocks - 1):
        write_tensors(out / block_file(block), {"skipped": torch.zeros(1)})  # marks the block as done by an earlier run
    given = {"dtype": torch.float32, "device": CPU, "batch_tokens": 64, "memory": memory}
    build_database(stage, BlockStream(checkpoint, tokens, **given), UnitsSettings(attention="kv_group"))
    database = peak_bytes()
    with kept_memory(CPU):
        for block, moments in output_gradients(BlockStream(checkpoint, tokens, **given), tokens, memory):
            write_tensors(out / f"gradients_{block}.safetensors", {str(kind): S for kind, S in moments.items()})
    return database, peak_bytes()


def test_peak_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 500}
    peaks, sizes = [], []
    for layers in (8, 32):
        folder = tmp_path / str(layers)
        model = tiny_model(
            "llama", num_hidden_layers=layers, hidden_size=WIDTH, intermediate_size=CHANNELS, head_dim=64, **heads
        )
        model.save_pretrained(folder / "model", max_shard_size="5MB")
        sizes.append(sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors")))
        del model
        with ProcessPoolExecutor(1, mp_context=SERVER) as pool:
            peaks.append(pool.submit(measured, folder / "model", folder / "database").result())
    growth = sizes[1] - sizes[0]
    assert growth >= 24 * BLOCK_BYTES > 95e6, "24 blocks more would show"
    for few, many in zip(*peaks, strict=True):
        assert many - few < 0.2 * growth
