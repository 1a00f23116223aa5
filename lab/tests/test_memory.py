"""What the benchmark of memory calls a small card."""

import torch

from darwinlm.runtime.memory import all_bytes, free_bytes
from lab.benchmarks.memory import limited


def test_a_card_is_as_small_as_the_benchmark_says(monkeypatch):
    card, used = torch.device("cuda"), {"reserved": 30, "allocated": 10}
    for name, size in used.items():
        monkeypatch.setattr(torch.cuda, f"memory_{name}", lambda *_, size=size: size)
    with limited("cuda", 100):
        assert all_bytes(card) == 100
        assert free_bytes(card) == 90, "what is reserved and not in use is free too"
