"""Locks of folders: one process at a time, none that a dead one holds, and what a killed one left."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from darwinlm.runtime import lock
from darwinlm.runtime.errors import BusyError, StorageError
from darwinlm.runtime.lock import hold_folder, hold_target


@pytest.mark.parametrize("how", ["hold_folder", "hold_target"])
def test_the_second_process_is_refused_until_the_first_one_dies(holder, tmp_path, how):
    first = holder(how, tmp_path / "out")
    left = [tmp_path / "out" / f".a.{'5' * 16}.tmp", tmp_path / f".out.{'ab' * 8}.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with pytest.raises(BusyError, match=r"is in use by another process: wait until it has finished"):
        getattr(lock, how)(tmp_path / "out")
    assert all(path.exists() for path in left)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    held = getattr(lock, how)(tmp_path / "out")
    held.release()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [left[how == "hold_folder"]], "what the dead one left is gone"


@pytest.mark.parametrize("stands", [True, False])
def test_a_folder_that_was_moved_aside_comes_back_unless_its_successor_stands(tmp_path, stands):
    """A process was killed while it put a new model in the place of an old one."""
    for hold, folder in ((hold_folder, tmp_path / "run" / "model"), (hold_target, tmp_path / "exported")):
        old = folder.with_name(f".{folder.name}.old")
        old.mkdir(parents=True)
        (old / "which").write_text("old")
        if stands:
            folder.mkdir()
            (folder / "which").write_text("new")
        hold(folder.parent if hold is hold_folder else folder).release()
        assert (folder / "which").read_text() == ("new" if stands else "old")
        assert not old.exists()


@pytest.mark.parametrize("link", [True, False])
def test_a_lock_is_no_link_and_no_file_of_others(tmp_path, link):
    out, victim = tmp_path / "out" / lock.LOCK, tmp_path / "victim"
    out.parent.mkdir()
    victim.write_text("precious")
    out.symlink_to(victim) if link else out.write_text("precious")
    with pytest.raises(StorageError, match="holds something else than our lock: move it away"):
        hold_folder(out.parent)
    assert out.read_text() == victim.read_text() == "precious"
    out.unlink()
    out.write_text("process 5 on a machine")  # of an earlier version
    hold_folder(out.parent).release()


def test_another_thread_waits(tmp_path):
    held = hold_folder(tmp_path)
    with ThreadPoolExecutor(1) as threads, pytest.raises(BusyError, match="in use by another thread"):
        threads.submit(hold_folder, tmp_path).result()
    held.release()
    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(hold_folder, tmp_path).result()
    assert hold_folder(tmp_path) is held, "its thread has ended"


def test_a_lock_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("darwinlm.runtime.lock.FileLock.acquire", full)
    with pytest.raises(StorageError, match=r"can't write .*\.lock: the disk is full"):
        hold_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
