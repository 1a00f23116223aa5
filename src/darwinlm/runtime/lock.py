"""Locks for output folders and files, and removal of temporary files of killed runs.

A lock is a POSIX record lock on a small file. The kernel releases it when the process ends, even after a kill, and NFS
supports it between machines. On a file system without locks, the run prints a warning and continues.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import os
import re
import socket
import stat
import threading
import time
from pathlib import Path
from weakref import WeakValueDictionary

from darwinlm.runtime.errors import BusyError, StorageError, storage_error
from darwinlm.runtime.folders import make_folder, remove

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file in the output folder of a run."""
OWNER, LONGEST = b"process ", 1024
"""Beginning of a lock file, and its largest size in bytes."""
TRIES = 500
"""How often a lock is tried that others remove meanwhile, or whose file never looks the same."""
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Windows has neither; elsewhere a link is refused and a pipe isn't waited for."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
ASIDE = ".old"
"""Ending of a hidden folder that is about to be replaced."""
_PARTIAL = (".model.partial", ".model.unchecked", f".model{ASIDE}")
_HELD: WeakValueDictionary[Path, Lock] = WeakValueDictionary()
_ONE_AT_A_TIME = threading.RLock()


def _busy(what: Path, owner: str) -> BusyError:
    return BusyError(f"{what} is in use by {owner}: wait until it has finished, or choose another place")


class Lock(contextlib.AbstractContextManager["Lock"]):
    """The lock of this process on a file; it ends with the object or the process.

    Attributes:
        problem: Reason why nothing is locked, if the file system has no locks; else None.
        thread: The thread that asked for it.
    """

    def __init__(self, path: Path, what: Path) -> None:
        self.path, self._what = path, what
        self.problem: str | None = None
        self._made = _make(path.parent)
        self._pid, self.thread = os.getpid(), threading.current_thread()
        self._file = self._acquire()

    def _acquire(self) -> int | None:
        for left in reversed(range(TRIES)):
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o644)
            except OSError as error:
                self._unmake()
                if self.path.is_symlink():
                    raise self._foreign() from error
                raise storage_error(self.path, error) from error
            if not _is_lock(file):
                os.close(file)
                raise self._foreign()
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
                os.close(file)
                raise _busy(self._what, owner) from None
            except (OSError, AttributeError) as error:  # a file system or operating system without locks
                self.problem = getattr(error, "strerror", None) or "this system has no file locks"
                return file
            if self._is_current(file):
                self._sign(file)
                return file
            if not left:
                self.problem = "its files don't keep their identity"
                return file
            os.close(file)  # the owner removed it between the two calls
            time.sleep(0.01)
        raise AssertionError("the last try returns")

    def _sign(self, file: int) -> None:
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, f"{OWNER.decode()}{self._pid} on {socket.gethostname()}".encode(), 0)
        except OSError as error:
            os.close(file)
            with contextlib.suppress(OSError):
                self.path.unlink()
            self._unmake()
            raise storage_error(self.path, error) from error

    def _foreign(self) -> StorageError:
        return StorageError(
            f"{self.path} is a link, or holds something else than our lock: move it away, or choose another place"
        )

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    @property
    def is_held(self) -> bool:
        """Whether this process, and not its parent before a fork, still has the lock."""
        return self._file is not None and self._pid == os.getpid()

    def release(self) -> None:
        """Remove the file, and folders that were created for it and are still empty."""
        if self._file is None or not self.is_held:
            return
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None
        self._unmake()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _unmake(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.release()


def _is_lock(file: int) -> bool:
    """Whether an open file is a lock of ours, or new: it is written to, so it may be no other file under two names."""
    facts = os.fstat(file)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        return False
    content = os.pread(file, LONGEST, 0)
    return facts.st_size < LONGEST and (not content or content.startswith(OWNER))


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
