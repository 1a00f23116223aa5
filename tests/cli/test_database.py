"""Databases: used by other sizes, and built without room."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from tests.tiny.damage import assert_nothing_half_written

from darwinlm.database.store import DatabaseReader
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import UnitsSettings
from darwinlm.runtime import memory


@pytest.fixture
def copied(finished_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_llama, tmp_path / "db"))


def test_sizes_in_the_folder_of_a_run_use_its_database(prune, copied):
    ended = prune("--keep", "70%,50%", "--until", "search", out=copied).succeeded()
    assert "calibration and database: already done, reused" in ended.out
    assert not (copied / "keep-50" / "stages" / "database").exists()
    assert (copied / "keep-50" / "stages" / "search" / "manifest.json").exists()


def test_losses_fall_with_the_level(finished_llama, tiny_llama):
    reader = DatabaseReader(finished_llama / "stages" / "database", Checkpoint.open(tiny_llama), UnitsSettings())
    for module in reader.modules:
        losses = [reader.loss(module.block, module.kind, level) for level in module.levels]
        assert losses[0] > 0 == losses[-1]
        if module.kind == "mlp":
            assert losses == sorted(losses, reverse=True)


def test_no_room_for_residual_streams(prune, tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setitem(memory.WORK, "streams", 0.0)
    ended = prune()
    ended.refused("the disk is full", "rerun the same command; finished work is kept")
    assert_nothing_half_written(tmp_path / "out")
