"""One run in a folder at a time, and no temporary files of runs that were killed.

A lock is a POSIX record lock on a small file: the kernel drops it when its process ends, however it ends, and NFS
carries it between machines. A file system without locks is said so, and the run goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Self
from weakref import WeakValueDictionary

from darwinlm.errors import BusyError, StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file in the output folder of a run."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_PARTIAL = (".model.partial", ".model.unchecked")
_HELD: WeakValueDictionary[Path, Lock] = WeakValueDictionary()


class Lock:
    """The lock of this process on a file; it ends when the object does, or with the process.

    Attributes:
        problem: Reason why nothing is locked, if the file system has no locks; else None.
    """

    def __init__(self, path: Path, what: Path) -> None:
        self.path, self._what = path, what
        self.problem: str | None = None
        self._made = _make(path.parent)
        self._pid = os.getpid()
        self._file = self._acquire()

    def _acquire(self) -> int | None:
        while True:
            try:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                self._unmake()
                raise StorageError(
                    f"can't write {self.path}: {error.strerror}: check the path and its permissions"
                ) from error
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process"
                os.close(file)
                raise BusyError(
                    f"{self._what} is in use by {owner}: wait until it has finished, or choose another place"
                ) from None
            except (OSError, AttributeError) as error:  # a file system, or a system, without locks
                self.problem = getattr(error, "strerror", None) or "this system has no file locks"
                return file
            if self._is_current(file):
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {self._pid} on {socket.gethostname()}".encode(), 0)
                return file
            os.close(file)  # its owner removed it between the two calls

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    @property
    def is_held(self) -> bool:
        """Whether this process, and not one that it was forked from, still has the lock."""
        return self._file is not None and self._pid == os.getpid()

    def release(self) -> None:
        """Remove the file and the folders that were made for it and are still empty."""
        if self._file is None or not self.is_held:
            return
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None
        self._unmake()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _unmake(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.release()


def hold(path: Path, what: Path) -> Lock:
    """Lock a file for this process; asked again for the same one, the process gets the lock that it has.

    Args:
        path: The lock file, made where it isn't there.
        what: Locked object, for messages.

    Raises:
        BusyError: Another process has it.
        StorageError: The file can't be made.
    """
    key = path.absolute()
    held = _HELD.get(key)
    if held is None or not held.is_held:
        held = _HELD[key] = Lock(key, what)
    return held


@atexit.register
def release_all() -> None:
    """Release every lock of this process; errors keep what they were raised in alive for a while, and locks with it."""
    for lock in list(_HELD.values()):
        lock.release()
    _HELD.clear()


def hold_folder(folder: Path) -> Lock:
    """Lock the output folder of a run, and remove what killed runs left half-written in it. Raises as `hold`."""
    lock = hold(folder / LOCK, folder)
    if lock.problem is None:
        for path in (*folder.glob("*"), *_below(folder / "stages")):
            if _TEMPORARY.fullmatch(path.name) or path.name in _PARTIAL:
                _remove(path)
    return lock


def hold_target(path: Path) -> Lock:
    """Lock a file or folder that is written beside and then renamed; remove what killed processes left of it.

    Raises as `hold`.
    """
    lock = hold(path.with_name(f".{path.name}.lock"), path)
    if lock.problem is None and path.parent.is_dir():
        for other in path.parent.glob(f".{_literal(path.name)}.*"):
            if other.name.startswith(f".{path.name}.") and re.fullmatch(
                r"(\d+\.tmp|(plain\.)?partial|unchecked)", other.name[len(path.name) + 2 :]
            ):
                _remove(other)
    return lock


def is_ours(name: str) -> bool:
    """Whether a name in an output folder is one that a run leaves when it is killed at its start."""
    return name == LOCK or _TEMPORARY.fullmatch(name) is not None


def _below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for root, folders, files in os.walk(folder):  # doesn't follow links
        found += [Path(root, name) for name in (*folders, *files)]
    return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were made, the innermost first."""
    missing = []
    above = folder
    while not above.exists() and above != above.parent:
        missing.append(above)
        above = above.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"can't write {folder}: {error.strerror}: check the path and its permissions") from error
    return missing
