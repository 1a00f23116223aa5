"""Residual streams and matrices that lie in files when memory is short: the same values, and nothing left behind."""

import pytest
import torch

from darwinlm.database import build
from darwinlm.database.build import Spilled
from darwinlm.runtime import memory
from darwinlm.runtime.errors import ArtifactError
from darwinlm.streaming.hidden import HiddenMemory, HiddenStates

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
    assert states.place == place
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
    assert HiddenStates(iter(batches(torch.float32)), ELEMENTS).place == "device", "without a choice"


@pytest.mark.parametrize("small", [0, 1 << 22])
def test_a_spilled_matrix_comes_back_whole_in_rows_or_alone(small, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SMALL", small)
    generator = torch.Generator().manual_seed(0)
    matrix, three = torch.randn(600, 600, generator=generator), torch.randn(3, 7, 7, generator=generator)
    with Spilled(matrix.clone(), tmp_path) as place, Spilled(three.clone(), tmp_path) as other:
        assert len(list(tmp_path.iterdir())) == (2 if small == 0 else 0)
        assert torch.equal(place.read(), matrix)
        assert all(torch.equal(other.read(expert), three[expert]) for expert in range(3))
        rows = list(place.rows())
        assert len(rows) == 3
        assert torch.equal(torch.cat(rows), matrix)
    assert list(tmp_path.iterdir()) == []


def test_a_spilled_matrix_that_is_gone_is_a_damaged_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "SMALL", 0)
    with Spilled(torch.ones(2, 2), tmp_path) as place:
        (path,) = tmp_path.iterdir()
        path.unlink()
        with pytest.raises(ArtifactError, match=r"\.spilled-.* is damaged .*No such file"):
            place.read()
