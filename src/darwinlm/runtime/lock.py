"""Locks for output folders and files, and removal of temporary files of killed runs.

The kernel releases a lock when the process ends, even after a kill. On a file system without locks, the run prints a
warning and continues.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import glob
import os
import re
import socket
import threading
from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from darwinlm.runtime.errors import BusyError, StorageError, storage_error
from darwinlm.runtime.folders import make_folder, remove

LOCK = ".lock"
"""Name of the lock file in the output folder of a run."""
OWNER = "process "
"""Beginning of a lock file."""
PATIENCE = 0.2
"""Seconds that a lock is tried, since its file may be removed between opening and locking it."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems say that have no locks."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
ASIDE = ".old"
"""Ending of a hidden folder that is about to be replaced."""
_PARTIAL = (".model.partial", ".model.unchecked", f".model{ASIDE}")
_HELD: WeakValueDictionary[Path, Lock] = WeakValueDictionary()
_ONE_AT_A_TIME = threading.RLock()


class Lock(contextlib.AbstractContextManager["Lock"]):
    """The lock of this process on a file; it ends with the object or the process.

    Attributes:
        problem: Reason why nothing is locked, if the file system has no locks; else None.
        thread: The thread that asked for it.
    """

    def __init__(self, path: Path, what: Path) -> None:
        self.path, self.thread = path, threading.current_thread()
        self.problem: str | None = None
        self._made = _make(path.parent)
        self._lock = FileLock(path, PATIENCE, thread_local=False, poll_interval=0.02, fallback_to_soft=False)
        try:
            self._lock.acquire()
            self._sign()
        except Timeout:
            owner = path.read_text(encoding="utf-8", errors="replace")[:200] if path.is_file() else ""
            raise _busy(what, owner or "another process") from None
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                self.problem = error.strerror
                path.unlink(missing_ok=True)
                return
            self.release()
            self._unmake()
            raise storage_error(path, error) from error

    def _sign(self) -> None:
        """Write the owner into the file, which is a new one or a lock of ours. Raises StorageError, OSError."""
        if not self.path.is_file() or self.path.read_bytes()[: len(OWNER)] not in (b"", OWNER.encode()):
            self._lock.release()
            raise StorageError(f"{self.path} holds something else than our lock: move it away")
        self.path.write_text(f"{OWNER}{os.getpid()} on {socket.gethostname()}", encoding="utf-8")

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
        if hasattr(self, "_lock"):
            self.release()

    def _unmake(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _busy(what: Path, owner: str) -> BusyError:
    return BusyError(f"{what} is in use by {owner}: wait until it has finished, or choose another place")


def hold(path: Path, what: Path) -> Lock:
    """Lock a file for this thread; repeated calls for the same file return the same lock.

    `what` is the locked object, for messages. Raises BusyError if another process or thread has the lock, or
    StorageError.
    """
    with _ONE_AT_A_TIME:
        key = path.parent.resolve() / path.name
        held = _HELD.get(key)
        if held is None or not held.is_held:
            held = _HELD[key] = Lock(key, what)
        elif held.thread is not threading.current_thread() and held.thread.is_alive():
            raise _busy(what, f"the thread {held.thread.name} of this process")
        held.thread = threading.current_thread()
        return held


@atexit.register
def release_all() -> None:
    """Release all locks of this process, which tracebacks of errors could otherwise keep alive."""
    for lock in reversed(list(_HELD.values())):  # inner folders before the folders that they were created in
        lock.release()
    _HELD.clear()


def hold_folder(folder: Path) -> Lock:
    """Lock the output folder of a run, and remove half-written files of killed runs. Raises as `hold`."""
    lock = hold(folder / LOCK, folder)
    if lock.problem is None:
        below = [part for part in (folder / "stages", folder / "model") if not part.is_symlink()]
        for path in (*folder.glob("*"), *(path for part in below for path in part.rglob("*"))):
            if _TEMPORARY.fullmatch(path.name) or path.name in _PARTIAL:
                _remove(path)
    return lock


def hold_target(path: Path) -> Lock:
    """Lock a file or folder that will be replaced by rename, and remove temporary files of killed processes.

    Raises as `hold`.
    """
    lock = hold(path.with_name(f".{path.name}.lock"), path)
    if lock.problem is None and path.parent.is_dir():
        for other in path.parent.glob(f".{glob.escape(path.name)}.*"):
            if other.name.startswith(f".{path.name}.") and re.fullmatch(
                r"((export\.json\.)?\d+\.tmp|(plain\.)?partial|unchecked|old|work|rounded)",
                other.name[len(path.name) + 2 :],
            ):
                _remove(other)
    return lock


def is_ours(path: Path) -> bool:
    """Whether a path in an output folder may come from a run that was killed at its start, or from macOS."""
    if path.is_dir() and not _TEMPORARY.fullmatch(path.name):  # of one size of a sweep
        return all(map(is_ours, path.iterdir()))
    return path.name in (LOCK, ".DS_Store") or _TEMPORARY.fullmatch(path.name) is not None


def _remove(path: Path) -> None:
    whole = path.with_name(path.name[1:].removesuffix(ASIDE))
    if path.suffix == ASIDE and not whole.exists():  # its process was killed before the new one stood
        path.replace(whole)
    else:
        remove(path)


def _make(folder: Path) -> list[Path]:
    """Create a folder and its parents; returns the created ones, the innermost first."""
    try:
        return make_folder(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
