"""The removal loop on a GPU: a step that a CUDA graph can record, and that a replay repeats."""

import gc
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from darwinlm.database import elimination
from darwinlm.database.elimination import eliminate, why_not_recorded
from darwinlm.runtime import cuda_graph
from tests.gpu.device import NAME, Gpu
from tests.gpu.recording import Recorder
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages

BLOCK = 16


def matrices(d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """C and G of a module."""
    generator = torch.Generator().manual_seed(0)
    X, W = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (3 * d, d // 2))
    X *= torch.linspace(0.5, 2, d, dtype=torch.float64)
    return torch.linalg.inv(X.T @ X / len(X)).mT.contiguous().to(dtype), (W.T @ W).to(dtype)


def on(device: str, C: Tensor, G: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Order and costs, computed on a device."""
    picks, costs = eliminate(C.clone().to(device), G.clone().to(device), n, BLOCK)
    return picks.cpu(), costs.cpu()


@pytest.fixture
def recorder(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """CUDA graphs for the pretend device."""
    made = Recorder()
    monkeypatch.setattr(elimination, "can_record", lambda device: device.type == NAME)
    monkeypatch.setattr(elimination, "recorded", made)
    monkeypatch.setattr(elimination._Elimination, "failure", "")
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 17, 96])
def test_replayed_steps_find_the_order_of_the_cpu(recorder, d, dtype):
    C, G = matrices(d, dtype)
    expected, costs = on("cpu", C, G, d)
    picks, found = on(NAME, C, G, d)
    assert torch.equal(picks, expected)
    torch.testing.assert_close(found, costs, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-12)
    steps = sum(recording.replays for recording in recorder.recordings)
    assert steps >= d - 2 * len(recorder.recordings) - 2, "all but the first one of each size are replayed"


def test_a_replay_needs_one_launch_and_no_wait(gpu, recorder):
    C, G = (tensor.to(NAME) for tensor in matrices(120))
    gpu.restart()
    eliminate(C, G, 120, BLOCK)
    found = gpu.tally.inside("database/elimination.py")
    assert {recording.kernels for recording in recorder.recordings} == {31}
    # Launched one by one: the first step of each size, its recording, and the flushes.
    steps = sum(recording.replays for recording in recorder.recordings)
    assert found["kernels"] - 31 * (2 * len(recorder.recordings)) < 6 * 120
    assert steps + 2 * len(recorder.recordings) >= 120
    assert found["waits"] <= 2 * len(recorder.recordings)
    assert found["uploads"] == 0


def test_units_of_several_columns_are_not_recorded(recorder):
    C, G = matrices(96)
    expected = on("cpu", C, G, 8)
    found = on(NAME, C, G, 8)
    assert not recorder.recordings
    assert torch.equal(found[0], expected[0])


def test_a_step_that_reads_a_number_can_not_be_recorded(recorder, monkeypatch):
    right = elimination._Elimination._cheapest

    def reading(self: elimination._Elimination) -> Tensor:
        place = right(self)
        float(self.costs[0])
        return place

    monkeypatch.setattr(elimination._Elimination, "_cheapest", reading)
    C, G = matrices(40)
    expected = on("cpu", C, G, 40)[0]
    assert torch.equal(on(NAME, C, G, 40)[0], expected), "it goes on without"
    assert "not permitted when stream is capturing" in why_not_recorded()


def test_full_memory_is_no_reason_to_go_on(recorder, monkeypatch):
    monkeypatch.setattr(elimination, "recorded", mock.Mock(side_effect=torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        on(NAME, *matrices(40), 40)


def test_recording_uses_the_devices_stream_and_leaves_it(monkeypatch):
    """With PyTorch's functions replaced, since there is no CUDA: a failure must not leave its own stream behind."""
    events: list[str] = []

    def context(name: str) -> Callable[..., object]:
        class Context:
            def __init__(self, *arguments: object, **named: object) -> None:
                events.append(" ".join([name, *map(str, arguments), *map(str, named.values())]))

            def __enter__(self) -> None: ...

            def __exit__(self, *error: object) -> None:
                events.append(f"{name} left")

        return Context

    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, context(name))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="replay", __str__=None))

    def refused() -> None:
        events.append(f"objects out of collections: {gc.get_freeze_count() > 0}")
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph.recorded(refused, torch.device("cuda:1"))
    assert gc.get_freeze_count() == 0
    assert events[:2] == ["device cuda:1", "stream stream of cuda:1"]
    assert events[2].endswith("thread_local")
    assert events[3:] == ["objects out of collections: True", "graph left", "stream left", "device left"]
    assert cuda_graph.recorded(lambda: None, torch.device("cuda:1")) == "replay"


def test_a_run_says_once_that_nothing_is_recorded(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(elimination, "can_record", lambda device: True)
    monkeypatch.setattr(elimination._Elimination, "failure", "")
    failing = mock.Mock(side_effect=RuntimeError("CUDA error: no graphs\nmore"))
    monkeypatch.setattr(elimination, "recorded", failing)
    run = make_run(tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=2), tmp_path / "out")
    said: list[str] = []
    monkeypatch.setattr(run.context.reporter, "say", said.append)
    run_stages(run, "database")
    assert failing.call_count == 1, "not tried again"
    assert sum("can't be recorded as a CUDA graph (CUDA error: no graphs)" in line for line in said) == 1
