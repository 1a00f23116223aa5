"""Peak memory of the database stage and of the gradients before it, measured in processes of their own; small cards."""

import multiprocessing
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from darwinlm.runtime.memory import all_bytes, free_bytes

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WIDTH, CHANNELS = 256, 1024
BLOCK_BYTES = 4 * (4 * WIDTH**2 + 3 * WIDTH * CHANNELS)
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 500}
OPTIONS = {"tokens": 128, "sequence": 64, "batch_tokens": 64, "factorise": 1, "dtype": "float32", "device": "cpu"}


def measured(folder: Path, layers: int) -> dict:
    from lab.benchmarks.calibration import measure
    from lab.benchmarks.random_llama import write_llama

    sizes = {"num_hidden_layers": layers, "hidden_size": WIDTH, "intermediate_size": CHANNELS, **HEADS}
    write_llama(folder / "model", dtype=torch.float32, **sizes)
    options = Namespace(**OPTIONS, units="kv_group", gradients=True, hidden_states="file")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, folder / "model", folder / "database", options).result()


def test_peak_memory_does_not_grow_with_the_number_of_layers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    few, many = (measured(tmp_path / str(layers), layers) for layers in (8, 32))
    growth = many["checkpoint_bytes"] - few["checkpoint_bytes"]
    assert growth >= 24 * BLOCK_BYTES > 95e6, "24 blocks more would show"
    for peak in ("database_peak_bytes", "peak_bytes"):
        assert many[peak] - few[peak] < 0.2 * growth


def test_a_card_is_as_small_as_the_benchmark_says(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from lab.benchmarks.memory import limited

    card, used = torch.device("cuda"), {"reserved": 30, "allocated": 10}
    for name, size in used.items():
        monkeypatch.setattr(torch.cuda, f"memory_{name}", lambda *_, size=size: size)
    with limited("cuda", 100):
        assert all_bytes(card) == 100
        assert free_bytes(card) == 90, "what is reserved and not in use is free too"
