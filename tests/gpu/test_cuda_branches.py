"""Every branch on the name of CUDA or of Apple's GPUs runs in some test, since the pretend GPU has another name."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from darwinlm.latency.timing import ModelTimer
from darwinlm.planning.probe import Machine
from darwinlm.recovery.train import Training
from darwinlm.sampling import sampler
from darwinlm.search.evaluate.student import Student
from darwinlm.stages import latency
from darwinlm.streaming.transfers import HostCopy, pinned_like

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda:0")
HERE = "tests/gpu/test_cuda_branches.py"
BRANCHES = {
    "calibration/moments.py": "tests/unit/test_moments.py",
    "database/store.py": "tests/integration/test_pipeline.py",
    "latency/timing.py": HERE,
    "planning/devices.py": "tests/unit/test_planning_devices.py",
    "planning/probe.py": HERE,
    "recovery/train.py": HERE,
    "runtime/compute.py": "tests/unit/test_compute.py",
    "runtime/cuda_graph.py": "tests/gpu/test_removal_loop.py",
    "runtime/memory.py": "tests/unit/test_free_memory.py",
    "sampling/sampler.py": HERE,
    "search/evaluate/student.py": HERE,
    "stages/latency.py": HERE,
    "streaming/hidden.py": "tests/unit/test_transfers.py",
    "streaming/streamed.py": "tests/unit/test_transfers.py",
    "streaming/transfers.py": HERE,
}
"""Files with such branches, and the tests that run them."""


def test_all_branches_are_listed():
    code = ROOT / "src" / "darwinlm"
    found = {
        path.relative_to(code).as_posix()
        for path in code.rglob("*.py")
        if re.search(r'type [!=]= "(cuda|mps)"', path.read_text(encoding="utf-8"))
    }
    assert found == BRANCHES.keys()
    assert all((ROOT / test).is_file() for test in BRANCHES.values())


class OnCard(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = property(lambda self: CUDA)


@pytest.fixture
def card(monkeypatch) -> list[str]:
    """Stands for a GPU: copies to it stay where they are; notes what was pinned and awaited."""
    events: list[str] = []

    def pinned(tensor):
        events.append("pinned")
        return tensor

    make = torch.empty, torch.zeros
    for function in make:

        def made(*sizes, pin_memory=False, function=function, **how):
            if pin_memory:
                events.append("pinned")
            return function(*sizes, **how)

        monkeypatch.setattr(torch, function.__name__, made)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("awaited"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    return events


def test_batches_and_copies_are_pinned(card):
    training = SimpleNamespace(device=CUDA, batches=SimpleNamespace(get=lambda *_: {"input_ids": torch.arange(3)}))
    assert torch.equal(Training._batch(training, 0, 0)["input_ids"], torch.arange(3))
    assert card == ["pinned"]
    weights = torch.arange(4.0)
    copy = HostCopy([weights.as_subclass(OnCard)])
    assert card == ["pinned", "pinned", "awaited"]
    copy.copy_to([given := torch.zeros(4)])
    assert torch.equal(given, weights)
    assert pinned_like(weights).shape == weights.shape


def test_timing_waits_for_the_card_and_takes_its_wall_time(card):
    ticks = iter(range(1000))
    machine = SimpleNamespace(device=CUDA, clocks=(lambda: next(ticks), lambda: 0.0))
    machine._several = lambda action: Machine._several(machine, action)
    assert Machine._timed(machine, lambda: None) == 1
    assert set(card) == {"awaited"}
    assert Machine._transfers(SimpleNamespace(device=CUDA, _timed=lambda action: action() is None or 1.0)) > 0
    assert card[-1] == "pinned"


def test_latencies_are_of_the_card_and_its_graphs(card):
    task = SimpleNamespace(context=SimpleNamespace(device=CUDA, dtype=torch.float32))
    machine = latency._machine(task)
    assert machine["machine"][:2] == ["Some Card", "cuda"]
    assert "CUDA graph" in machine["timed"]
    checkpoint = SimpleNamespace(config=SimpleNamespace(vocab_size=9))
    budget = SimpleNamespace(prefill_tokens=2, decode_tokens=2, batch=1)
    timer = ModelTimer(checkpoint, {}, budget, dtype=torch.float32, device=CUDA, runs=1)
    assert timer.graphs


CPU_ROWS = torch.device("cpu"), 1 << 40, sampler.CPU_ROWS


@pytest.mark.parametrize(("device", "free", "rows"), [(CUDA, 1, 1), (CUDA, 1 << 40, sampler.GPU_ROWS), CPU_ROWS])
def test_sampled_rows_are_those_that_fit(monkeypatch, device, free, rows):
    monkeypatch.setattr(sampler, "free_bytes", lambda device: free)
    layer = SimpleNamespace(keys=torch.zeros(1, 2, 3, 4), values=None)
    made = SimpleNamespace(device=device, _prompt=SimpleNamespace(layers=[layer]), length=7)
    assert sampler.Sampler._fitting_rows(made) == rows


def test_the_optimiser_is_fused():
    assert Student._fused.fget(SimpleNamespace(working=[torch.ones(1).as_subclass(OnCard)]))
