"""Residual streams and matrices that lie in files when memory is short: the same values, and nothing left behind."""

import pytest
import torch

from darwinlm.model.walk.hidden import HiddenMemory, HiddenStates
from darwinlm.runtime import memory
from darwinlm.steps.database import build

SHAPES = [(3, 5, 4), (3, 5, 4), (1, 5, 4)]
ELEMENTS = 140


def batches(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", ["device", "file"])
def test_a_stream_gives_back_what_it_got(dtype, place, tmp_path):
    given = batches(dtype)
    states = HiddenStates(iter(given), ELEMENTS, HiddenMemory(tmp_path, place))
    assert states.storage == place
    assert states.elements == ELEMENTS
    assert len(states) == 3
    for found, expected in zip(states, given, strict=True):
        assert torch.equal(found, expected)
    kept = states[1]
    states[1] = given[0]
    assert torch.equal(states[1], given[0])
    assert torch.equal(kept, given[1]), "what was read doesn't change with its successor"
    states[1] = given[1]
    assert all(torch.equal(found, expected) for found, expected in zip(states, given, strict=True))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def room(monkeypatch):
    """Set the bytes that a GPU and main memory have for a stream."""

    def make(free: int, host: int) -> None:
        there = {"cuda": free, "cpu": host}
        monkeypatch.setattr(memory, "free_bytes", lambda device: int(there[device.type] / memory.WORK["streams"]))

    return make


@pytest.mark.parametrize(
    ("device", "free", "host", "place"),
    [
        ("cpu", 0, 4096, "device"),
        ("cpu", 0, 4095, "file"),
        ("cuda", 4096, 0, "device"),
        ("cuda", 4095, 4096, "host"),
        ("cuda", 4095, 4095, "file"),
    ],
)
def test_a_stream_lies_where_there_is_room(tmp_path, room, device, free, host, place):
    room(free, host)
    assert HiddenMemory(tmp_path).choose(torch.device(device), 1024, torch.zeros(2, 128)) == place
    assert HiddenStates(iter(batches(torch.float32)), ELEMENTS).storage == "device", "without a choice"


@pytest.mark.parametrize("small", [0, 1 << 22])
def test_moments_in_files_are_the_same_and_leave_none(small, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SMALL", small)
    for shape in ((600, 600), (3, 7, 7)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(build._set_aside(matrix.clone(), tmp_path), matrix)
    assert list(tmp_path.iterdir()) == []
