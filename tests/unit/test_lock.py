"""One process writes into a folder at a time, and what killed ones left is removed."""

import errno
import os
import signal

import pytest

from darwinlm.runtime import lock
from darwinlm.runtime.errors import BusyError, StorageError
from darwinlm.runtime.lock import hold_folder, hold_target


@pytest.mark.parametrize("how", ["hold_folder", "hold_target"])
def test_the_second_process_is_refused_until_the_first_one_dies(holder, tmp_path, how):
    first, left = holder(how, tmp_path / "out"), [tmp_path / "out" / ".a.1.tmp", tmp_path / ".out.7.tmp"]
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


def test_a_lock_is_never_a_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out" / lock.LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError, match="can't write"):
        hold_folder(tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("darwinlm.runtime.lock.FileLock.acquire", full)
    with pytest.raises(StorageError, match=r"can't write .*\.lock: the disk is full"):
        hold_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
