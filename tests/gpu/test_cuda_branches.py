"""Branches on the name of CUDA that no run of the pretend GPU takes, and PyTorch's refusals, which tests must keep."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from darwinlm.runtime import memory
from darwinlm.search.latency.timing import ModelTimer
from darwinlm.search.student import Student
from darwinlm.stages import latency
from darwinlm.text.sampling import sampler
from tests.gpu.rules import NAME

TESTS = Path(__file__).parents[1]
CARD = torch.device(NAME, 0)

QUESTIONS = {"is_available", "device_count", "get_device_name", "get_device_capability", "get_device_properties"}
SIZES = {"mem_get_info", "memory_reserved", "memory_allocated", "max_memory_allocated"}
"""Functions of `torch.cuda` with whose answers tests describe a machine."""


def test_no_test_replaces_what_cuda_refuses():
    """Else a test would take what a GPU doesn't, as a device without an index."""
    found = set()
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.args[0]) == "torch.cuda":
                found.add(ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else "a name")
    assert found <= {*QUESTIONS, *SIZES, "a name"}, found


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
