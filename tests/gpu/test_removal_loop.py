"""The removal loop on a GPU: a step that a CUDA graph can record, and that a replay repeats."""

from unittest import mock

import pytest
import torch
from torch import Tensor

from darwinlm.runtime import cuda_graph
from darwinlm.steps.database import elimination
from darwinlm.steps.database.elimination import eliminate, why_not_recorded
from tests.gpu.rules import NAME
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages

BLOCK = 16


def matrices(d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X, W = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (3 * d, d // 2))
    X *= torch.linspace(0.5, 2, d, dtype=torch.float64)
    return torch.linalg.inv(X.T @ X / len(X)).mT.contiguous().to(dtype), (W.T @ W).to(dtype)


def on(device: str, C: Tensor, G: Tensor, n: int) -> tuple[Tensor, Tensor]:
    picks, costs = eliminate(C.clone().to(device), G.clone().to(device), n, BLOCK)
    return picks.cpu(), costs.cpu()


@pytest.fixture(autouse=True)
def not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination._Elimination, "failure", "")
    monkeypatch.setattr(elimination, "RECORDED", elimination.COMPACTED)  # several sizes of small arrays too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 17, 96])
def test_replayed_steps_find_the_order_of_the_cpu(gpu, d, dtype):
    C, G = matrices(d, dtype)
    expected, costs = on("cpu", C, G, d)
    picks, found = on(NAME, C, G, d)
    assert torch.equal(picks, expected)
    torch.testing.assert_close(found, costs, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-12)
    steps = sum(recording.replays for recording in gpu.recordings)
    assert steps >= d - 2 * len(gpu.recordings) - 2, "all but the first one of each size are replayed"


def test_a_replay_needs_one_launch_and_no_wait(gpu):
    C, G = (tensor.to(NAME) for tensor in matrices(120))
    gpu.restart()
    eliminate(C, G, 120, BLOCK)
    found = gpu.tally.inside(elimination)
    assert {recording.kernels for recording in gpu.recordings} == {20}
    # Launched one by one: the first step of each size, its recording, and the flushes.
    steps = sum(recording.replays for recording in gpu.recordings)
    assert found["kernels"] - 20 * (2 * len(gpu.recordings)) < 6 * 120
    assert steps + 2 * len(gpu.recordings) >= 120
    assert found["waits"] <= 2 * len(gpu.recordings)
    assert found["uploads"] == 0
    assert gpu.tally.inside(cuda_graph)["waits"] == 0, "nor does a recording wait"


def test_a_recording_without_room_begins_again_after_unused_memory_is_returned(gpu, monkeypatch):
    returned, right = [], elimination._Elimination._cheapest
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: returned.append(1))

    def full(self: elimination._Elimination) -> Tensor:
        if gpu.recording is not None and not returned:
            raise torch.OutOfMemoryError("full")
        return right(self)

    monkeypatch.setattr(elimination._Elimination, "_cheapest", full)
    C, G = matrices(40)
    assert torch.equal(on(NAME, C, G, 40)[0], on("cpu", C, G, 40)[0])
    assert returned == [1]
    assert gpu.recordings
    assert not gpu.clocks.pools, "the allocator has left the recording that failed"


def test_units_of_several_columns_are_not_recorded(gpu):
    C, G = matrices(96)
    expected = on("cpu", C, G, 8)
    found = on(NAME, C, G, 8)
    assert not gpu.recordings
    assert torch.equal(found[0], expected[0])


def test_a_step_that_reads_a_number_can_not_be_recorded(gpu, monkeypatch):
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
    assert not gpu.clocks.pools, "the allocator has left the recording"


def test_full_memory_is_no_reason_to_go_on(gpu, monkeypatch):
    monkeypatch.setattr(elimination, "recorded", mock.Mock(side_effect=torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        on(NAME, *matrices(40), 40)


def test_a_run_says_once_that_nothing_is_recorded(gpu, make_run, tmp_path, monkeypatch):
    failing = mock.Mock(side_effect=RuntimeError("CUDA error: no graphs\nmore"))
    monkeypatch.setattr(elimination, "recorded", failing)
    run = make_run(tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=2), tmp_path / "out")
    said: list[str] = []
    monkeypatch.setattr(run.context.reporter, "say", said.append)
    run_stages(run, "database")
    assert failing.call_count == 1, "not tried again"
    assert sum("can't be recorded as a CUDA graph (CUDA error: no graphs)" in line for line in said) == 1
