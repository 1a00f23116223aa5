"""Residual streams and matrices that lie in files when memory is short: the same values, and nothing left behind."""

from __future__ import annotations

import errno

import pytest
import torch

from darwinlm import artifact
from darwinlm.calibration import hidden
from darwinlm.calibration.hidden import HiddenMemory, HiddenStates
from darwinlm.calibration.moments import SecondMoment
from darwinlm.database import spill as parked
from darwinlm.database.spill import Parked
from darwinlm.errors import ArtifactError, NumericsError, StorageError

SHAPES = [(3, 5, 4), (3, 5, 4), (1, 5, 4)]
ELEMENTS = 140


def batches(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spare", [-1, 0])
def test_a_stream_lies_in_a_file_above_the_limit_only(dtype, spare, tmp_path):
    given = batches(dtype)
    states = HiddenStates(iter(given), ELEMENTS, HiddenMemory(ELEMENTS * dtype.itemsize + spare, tmp_path))
    assert states.in_file == (spare < 0)
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


def test_without_a_limit_everything_stays_in_memory():
    assert not HiddenStates(iter(batches(torch.float32)), ELEMENTS).in_file


def test_a_disk_without_room_shows_before_anything_is_written(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hidden.os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match="the disk is full"):
        HiddenStates(iter(batches(torch.float32)), ELEMENTS, HiddenMemory(0, tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("small", [0, 1 << 22])
def test_a_parked_matrix_comes_back_whole_or_in_rows(small, tmp_path, monkeypatch):
    monkeypatch.setattr(parked, "SMALL", small)
    matrix = torch.randn(600, 600)
    with Parked(matrix.clone(), tmp_path) as place, Parked(matrix.clone() + 1, tmp_path) as other:
        assert len(list(tmp_path.iterdir())) == (2 if small == 0 else 0)
        assert torch.equal(place.read(), matrix)
        assert torch.equal(other.read(), matrix + 1)
        rows = list(place.rows())
        assert len(rows) == 3
        assert torch.equal(torch.cat(rows), matrix)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_one_of_several_parked_matrices_is_read_alone(small, tmp_path, monkeypatch):
    monkeypatch.setattr(parked, "SMALL", small)
    matrices = torch.randn(3, 7, 7)
    with Parked(matrices.clone(), tmp_path) as place:
        assert all(torch.equal(place.read(expert), matrices[expert]) for expert in range(3))


def test_nothing_stays_parked_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(parked, "SMALL", 0)
    with pytest.raises(NumericsError), Parked(torch.ones(2, 2), tmp_path):
        raise NumericsError("not finite")
    assert list(tmp_path.iterdir()) == []


def test_a_parked_matrix_that_is_gone_is_a_damaged_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(parked, "SMALL", 0)
    with Parked(torch.ones(2, 2), tmp_path) as place:
        (path,) = tmp_path.iterdir()
        path.unlink()
        with pytest.raises(ArtifactError, match=r"\.parked-.* is damaged .*No such file"):
            place.read()


def test_a_matrix_can_not_be_parked_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parked, "SMALL", 0)
    monkeypatch.setattr(artifact, "save_file", full)
    with pytest.raises(StorageError, match="the disk is full"):
        Parked(torch.ones(2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_moment_is_handed_over_without_a_copy():
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(6)
    moment.add(rows)
    place = moment._sum.data_ptr()
    taken = moment.take(lambda tensor: tensor.mul_(3))  # as three processes that saw the same would add up
    assert taken.data_ptr() == place
    torch.testing.assert_close(taken, rows.T @ rows / 20)
