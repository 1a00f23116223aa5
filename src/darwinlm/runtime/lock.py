"""Locks for output folders and files, and removal of temporary files of killed runs.

The kernel releases a lock when the process ends, even after a kill.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import re
import threading
from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from darwinlm.runtime.errors import BusyError, StorageError, storage_error
from darwinlm.runtime.folders import make_folder, remove

LOCK = ".lock"
"""Name of the lock file in the output folder of a run."""
OURS = b"process "
"""Beginning of the lock file of earlier versions; later ones are empty."""
PATIENCE = 0.2
"""Seconds that a lock is tried, since its file may be removed between opening and locking it."""
_UNIQUE = r"(\d+|[0-9a-f]{16})\.tmp"
"""Ending of a temporary name: a random number, or that of a process."""
_TEMPORARY = re.compile(rf"\..+\.{_UNIQUE}")
ASIDE = ".old"
"""Ending of a hidden folder that is about to be replaced."""
_PARTIAL = (".model.partial", ".model.unchecked", f".model{ASIDE}")
_HELD: WeakValueDictionary[Path, Lock] = WeakValueDictionary()


class Lock(contextlib.AbstractContextManager["Lock"]):
    """The lock of this process on a file; it ends with the object or the process."""

    def __init__(self, path: Path, locked: Path) -> None:
        self.path, self.thread = path, threading.current_thread()
        self._lock = FileLock(path, PATIENCE, thread_local=False, poll_interval=0.02)
        self._made: list[Path] = []
        try:
            self._made = make_folder(path.parent)
            if path.is_file() and path.stat().st_size and not path.read_bytes().startswith(OURS):
                raise StorageError(f"{path} holds something else than our lock: move it away")
            self._lock.acquire()
        except Timeout:
            message = f"{locked} is in use by another process: wait until it has finished, or choose another place"
            raise BusyError(message) from None
        except OSError as error:
            self._unmake()
            raise storage_error(path, error) from error

    @property
    def is_held(self) -> bool:
        """Whether this process, and not its parent before a fork, still has the lock."""
        return bool(self._lock.is_locked)

    def release(self) -> None:
        """Remove the file, and folders that were created for it and are still empty."""
        if self.is_held:
            with contextlib.suppress(OSError):
                self.path.unlink()
            self._lock.release()
            self._unmake()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def _unmake(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def hold(path: Path, locked: Path) -> Lock:
    """Lock a file; repeated calls for the same file in a thread return the same lock.

    `locked` is the locked object, for messages. Raises BusyError if another process or thread has it, or StorageError.
    """
    key = path.parent.resolve() / path.name
    lock = _HELD.get(key)
    if lock is None or not lock.is_held:
        lock = _HELD[key] = Lock(key, locked)
    elif lock.thread is not threading.current_thread() and lock.thread.is_alive():
        raise BusyError(f"{locked} is in use by another thread: wait until it has finished, or choose another place")
    lock.thread = threading.current_thread()
    return lock


@atexit.register
def release_all() -> None:
    """Release all locks of this process, which tracebacks of errors could otherwise keep alive."""
    for lock in reversed(list(_HELD.values())):  # inner folders before the folders that they were created in
        lock.release()
    _HELD.clear()


def hold_folder(folder: Path) -> Lock:
    """Lock the output folder of a run, and remove half-written files of killed runs. Raises as `hold`."""
    lock = hold(folder / LOCK, folder)
    written_folders = [part for part in (folder / "stages", folder / "model") if not part.is_symlink()]
    for path in (*folder.glob("*"), *(path for part in written_folders for path in part.rglob("*"))):
        if _TEMPORARY.fullmatch(path.name) or path.name in _PARTIAL:
            _remove(path)
    return lock


def hold_target(path: Path) -> Lock:
    """Lock a file or folder that will be replaced by rename, and remove temporary files of killed processes.

    Raises as `hold`.
    """
    lock = hold(path.with_name(f".{path.name}.lock"), path)
    endings = rf"(export\.json\.)?{_UNIQUE}|(plain\.)?partial|unchecked|old|work"
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if re.fullmatch(endings, leftover.name.removeprefix(f".{path.name}.")):
            _remove(leftover)
    return lock


def is_ours(path: Path) -> bool:
    """Whether a path in an output folder may come from a run that was killed at its start, or from macOS."""
    if path.is_dir() and not _TEMPORARY.fullmatch(path.name):  # of one size of a sweep
        return all(map(is_ours, path.iterdir()))
    return path.name in (LOCK, ".DS_Store") or _TEMPORARY.fullmatch(path.name) is not None


def _remove(path: Path) -> None:
    replaced = path.with_name(path.name[1:].removesuffix(ASIDE))
    if path.suffix == ASIDE and not replaced.exists():  # its process was killed before the new one stood
        path.replace(replaced)
    else:
        remove(path)
