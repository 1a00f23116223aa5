"""Residual streams and matrices that lie in files when memory is short: the same values, and nothing left behind."""

from __future__ import annotations

import errno

import pytest
import torch

from darwinlm.calibration import hidden
from darwinlm.calibration.hidden import HiddenMemory, HiddenStates
from darwinlm.calibration.moments import SecondMoment
from darwinlm.database import spill
from darwinlm.database.spill import Spilled
from darwinlm.errors import ArtifactError, NumericsError, StorageError

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
    assert (states.elements, states.sequences) == (ELEMENTS, 7)
    assert len(states) == 3
    for found, expected in zip(states, given, strict=True):
        assert torch.equal(found, expected)
    kept = states[1]
    states[1] = given[0]
    assert torch.equal(states[1], given[0])
    assert torch.equal(kept, given[1]), "what was read doesn't change with its successor"
    states[:] = given[::1]
    assert all(torch.equal(found, expected) for found, expected in zip(states[:], given, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_a_stream_lies_where_there_is_room(tmp_path, monkeypatch):
    def place(device: str, free: int, host: int) -> str:
        monkeypatch.setattr(hidden, "free_bytes", lambda _: free)
        monkeypatch.setattr(hidden, "free_host_bytes", lambda: host)
        return HiddenMemory(tmp_path).choose(torch.device(device), 1024, torch.zeros(2, 128))

    enough = int(4 * 1024 / hidden.SHARE)
    assert place("cpu", enough, enough) == "device"
    assert place("cpu", enough - 1, enough) == "file"
    assert place("cuda", enough, 0) == "device"
    assert place("cuda", enough - 1, enough) == "host"
    assert place("cuda", enough - 1, enough - 1) == "file"


def test_pinned_memory_is_counted_as_it_is_handed_out(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden, "free_bytes", lambda _: 0)
    monkeypatch.setattr(hidden, "free_host_bytes", lambda: int(2 * 4 * 129 / hidden.SHARE))
    choose = HiddenMemory(tmp_path).choose
    assert choose(torch.device("cuda"), 128, torch.zeros(128)) == "host"
    assert choose(torch.device("cuda"), 258, torch.zeros(129)) == "file"


def test_without_a_choice_everything_stays_on_the_device():
    assert HiddenStates(iter(batches(torch.float32)), ELEMENTS).place == "device"


def test_a_disk_without_room_shows_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hidden.os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match="the disk is full"):
        HiddenStates(iter(batches(torch.float32)), ELEMENTS, HiddenMemory(tmp_path, "file"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("small", [0, 1 << 22])
def test_a_spilled_matrix_comes_back_whole_or_in_rows(small, tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "SMALL", small)
    matrix = torch.randn(600, 600)
    with Spilled(matrix.clone(), tmp_path) as place, Spilled(matrix.clone() + 1, tmp_path) as other:
        assert len(list(tmp_path.iterdir())) == (2 if small == 0 else 0)
        assert torch.equal(place.read(), matrix)
        assert torch.equal(other.read(), matrix + 1)
        rows = list(place.rows())
        assert len(rows) == 3
        assert torch.equal(torch.cat(rows), matrix)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_one_of_several_spilled_matrices_is_read_alone(small, tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "SMALL", small)
    matrices = torch.randn(3, 7, 7)
    with Spilled(matrices.clone(), tmp_path) as place:
        assert all(torch.equal(place.read(expert), matrices[expert]) for expert in range(3))


def test_nothing_stays_spilled_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "SMALL", 0)
    with pytest.raises(NumericsError), Spilled(torch.ones(2, 2), tmp_path):
        raise NumericsError("not finite")
    assert list(tmp_path.iterdir()) == []


def test_a_spilled_matrix_that_is_gone_is_a_damaged_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "SMALL", 0)
    with Spilled(torch.ones(2, 2), tmp_path) as place:
        (path,) = tmp_path.iterdir()
        path.unlink()
        with pytest.raises(ArtifactError, match=r"\.spilled-.* is damaged .*No such file"):
            place.read()


def test_a_matrix_can_not_be_parked_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill, "SMALL", 0)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="the disk is full"):
        Spilled(torch.ones(2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_moment_is_handed_over_without_a_copy():
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(6)
    moment.add(rows)
    place = moment._sum.data_ptr()
    taken = moment.take(lambda tensor: tensor.mul_(3))  # as three processes that saw the same would add up
    assert taken.data_ptr() == place
    torch.testing.assert_close(taken, rows.T @ rows / 20)
