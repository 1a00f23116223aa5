"""Peak memory of the database stage, measured in processes of their own."""

import json
from pathlib import Path

import pytest
from tests.tiny.process import python

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "calibration.py"
WIDTH, CHANNELS = 256, 1024
BLOCK_BYTES = 4 * (4 * WIDTH**2 + 3 * WIDTH * CHANNELS)


def measured(layers: int, *more: str) -> dict:
    sizes = {"layers": layers, "hidden": WIDTH, "intermediate": CHANNELS, "heads": 4, "kv-heads": 4, "vocabulary": 500}
    sizes |= {"tokens": 128, "sequence": 64, "batch-tokens": 64, "factorise": 1, "dtype": "float32"}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    return json.loads(python("-W", "ignore", BENCHMARK, *options, *more, seconds=200).stdout)


@pytest.mark.parametrize("more", [(), ("--gradients", "--hidden-states", "file")], ids=["moments", "gradients"])
def test_peak_memory_does_not_grow_with_the_number_of_layers(more):
    few, many = measured(8, *more), measured(32, *more)
    growth = many["checkpoint_bytes"] - few["checkpoint_bytes"]
    assert growth >= 24 * BLOCK_BYTES > 95e6, "24 blocks more would show"
    assert many["peak_bytes"] - few["peak_bytes"] < 0.2 * growth
    assert many["hidden_states"] == ("file" if more else "device")
