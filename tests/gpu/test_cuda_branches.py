"""Branches on the name of CUDA that no run of the pretend GPU takes."""

from types import SimpleNamespace

import pytest
import torch

from darwinlm.runtime import memory
from darwinlm.search.latency.timing import ModelTimer
from darwinlm.search.student import Student
from darwinlm.stages import latency
from darwinlm.text.sampling import sampler
from tests.gpu.rules import NAME

CARD = torch.device(NAME, 0)


def test_latencies_are_of_the_card_and_its_graphs(gpu):
    task = SimpleNamespace(context=SimpleNamespace(device=CARD, dtype=torch.float32))
    machine = latency._machine(task)
    assert machine["machine"][:2] == [torch.cuda.get_device_name(CARD), "cuda"]
    assert "CUDA graph" in machine["timed"]
    checkpoint = SimpleNamespace(config=SimpleNamespace(vocab_size=9))
    budget = SimpleNamespace(prefill_tokens=2, decode_tokens=2, batch=1)
    timer = ModelTimer(checkpoint, {}, budget, dtype=torch.float32, device=CARD, runs=1)
    assert timer.graphs


CPU_ROWS = torch.device("cpu"), 1 << 40, sampler.CPU_ROWS


@pytest.mark.parametrize(("device", "free", "rows"), [(CARD, 1, 1), (CARD, 1 << 40, sampler.GPU_ROWS), CPU_ROWS])
def test_sampled_rows_are_those_that_fit(monkeypatch, device, free, rows):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    layer = SimpleNamespace(keys=torch.zeros(1, 2, 3, 4), values=None)
    made = SimpleNamespace(device=device, _prompt=SimpleNamespace(layers=[layer]), length=7)
    assert sampler.Sampler._fitting_rows(made) == rows


def test_the_optimiser_is_fused(gpu):
    student = Student([torch.nn.Linear(2, 2, device=CARD)], 1e-3)
    assert student.optimiser.defaults["fused"]
