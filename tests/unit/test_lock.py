"""One process writes into a folder at a time, and what killed ones left is removed."""

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
    first, left = holder(how, tmp_path / "out"), [tmp_path / "out" / ".a.1.tmp", tmp_path / ".out.7.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with pytest.raises(BusyError, match=rf"is in use by process {first.pid} on .+: wait until it has finished"):
        getattr(lock, how)(tmp_path / "out")
    assert all(path.exists() for path in left)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    held = getattr(lock, how)(tmp_path / "out")
    assert held.problem is None
    held.release()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [left[how == "hold_folder"]], "what the dead one left is gone"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / ".a.1.tmp").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", refuse)
        held = hold_folder(tmp_path)
        assert held.problem == os.strerror(code)
        assert (tmp_path / ".a.1.tmp").exists(), "it may be a live process's"
        held.release()


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


@pytest.mark.parametrize("plant", ["symlink", "hardlink", "other content", "pipe"])
@pytest.mark.parametrize("how", ["hold_folder", "hold_target"])
def test_a_lock_is_never_another_file(tmp_path, plant, how):
    place = {"hold_folder": tmp_path / "out" / lock.LOCK, "hold_target": tmp_path / ".out.lock"}[how]
    place.parent.mkdir(exist_ok=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if plant == "pipe":
        os.mkfifo(place)
    elif plant.endswith("link"):
        (place.symlink_to if plant == "symlink" else place.hardlink_to)(victim)
    else:
        place.write_text("precious")
    with pytest.raises(StorageError, match=r"holds something else than our lock|can't write"):
        getattr(lock, how)(tmp_path / "out")
    assert victim.read_text() == "precious"
    assert plant != "other content" or place.read_text() == "precious"


@pytest.mark.parametrize("other", ["out", "link"])
def test_another_thread_is_refused_while_the_first_one_lives(tmp_path, other):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    held = hold_folder(tmp_path / "out")
    with ThreadPoolExecutor(1) as pool, pytest.raises(BusyError, match="in use by the thread MainThread"):
        pool.submit(hold_folder, tmp_path / other).result()
    held.release()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold_folder, tmp_path / other).result()
    assert hold_folder(tmp_path / "out") is held, "its thread has ended"


def test_a_lock_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("darwinlm.runtime.lock.Path.write_text", full)
    with pytest.raises(StorageError, match=r"can't write .*\.lock: the disk is full"):
        hold_folder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
