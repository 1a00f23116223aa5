"""Databases: used by other sizes, and built without room."""

import errno
import os

from tests.tiny.damage import assert_nothing_half_written

from darwinlm.runtime import memory


def test_sizes_in_the_folder_of_a_run_use_its_database(prune, finished_copy):
    ended = prune("--keep", "70%,50%", "--until", "search", out=finished_copy).succeeded()
    assert "calibration and database: already done, reused" in ended.out
    assert not (finished_copy / "keep-50" / "stages" / "database").exists()
    assert (finished_copy / "keep-50" / "stages" / "search" / "manifest.json").exists()


def test_no_room_for_residual_streams(prune, tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setitem(memory.WORK, "streams", 0.0)
    ended = prune()
    ended.refused("the disk is full", "rerun the same command; finished work is kept")
    assert_nothing_half_written(tmp_path / "out")
