"""The file operations of this process, counted; at one of them the process dies, or the disk refuses from then on.

Counted is what changes a folder: making, opening to write, writing, waiting for the disk, renaming and removing. Python
reports most of it to audit hooks; writes go through files that are put in the place of `open`'s, and safetensors, whose
writing isn't Python's, through a function around it. An audit hook stays for good, so `watch` is for forked processes.
"""

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

WRITES = frozenset("wax+")
TAKES_ROOM = frozenset({"open", "write", "mkdir", "fsync", "allocate"})
ALWAYS_REFUSED = frozenset({errno.EROFS})
"""Errors of disks that refuse to rename and to remove, too."""


class Watched:
    """What the hooks share.

    Args:
        folder: operations elsewhere don't count.
        at: number of the operation at which it happens, from 0; None only counts.
        error: `errno` of a disk that refuses from that operation on; None kills the process.
    """

    def __init__(self, folder: Path, at: int | None = None, error: int | None = None) -> None:
        self.folder = str(folder)
        self.at, self.error = at, error
        self.seen: list[str] = []
        self._inside = False

    def operation(self, kind: str, path: Any, half: Callable[[], None] = lambda: None) -> None:
        """Count an operation; at the chosen one do half of it, and then what was asked for."""
        if self._inside:
            return
        self._inside = True  # what the hooks do themselves doesn't count
        try:
            name = os.fsdecode(path) if not isinstance(path, int) else os.readlink(f"/proc/self/fd/{path}")
            if not os.path.abspath(name).startswith(self.folder + os.sep):
                return
            self.seen.append(f"{kind} {os.path.abspath(name)[len(self.folder) + 1 :]}")
            if self.at is None or len(self.seen) <= self.at:
                return
            first = len(self.seen) == self.at + 1
            if self.error is None:
                half()
                os.kill(os.getpid(), signal.SIGKILL)
            elif first or kind in TAKES_ROOM or self.error in ALWAYS_REFUSED:
                if self.error not in ALWAYS_REFUSED:
                    half()
                raise OSError(self.error, os.strerror(self.error), name)
        finally:
            self._inside = False


class _File(io.FileIO):
    """A file whose writes count; the chosen one ends half-way."""

    watched: Watched

    def write(self, data: Any) -> int | None:
        view = memoryview(data).cast("B")
        self.watched.operation("write", self.name, lambda: super(_File, self).write(view[: len(view) // 2]))
        return super().write(view)


def watch(watched: Watched) -> None:
    """Count from now on, in this process."""
    sys.addaudithook(lambda event, args: _audit(watched, event, args))
    whole = io.open

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if isinstance(file, int) or not WRITES & set(mode) or "+" in mode or opener is not None:
            return whole(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _File(file, mode.replace("b", "").replace("t", ""))
        raw.watched = watched
        if buffering == 0:
            return raw
        binary = io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    io.open = builtins.open = opened  # type: ignore[assignment]
    for name, kind in (("fsync", "fsync"), ("posix_fallocate", "allocate")):
        setattr(os, name, _counted(watched, kind, getattr(os, name)))
    tensors = safetensors.torch.serialize_file

    def serialised(values: Any, filename: Any, metadata: Any = None) -> None:
        def half() -> None:
            tensors(values, filename, metadata=metadata)
            os.truncate(filename, os.path.getsize(filename) // 2)

        try:
            watched.operation("open", filename)
            watched.operation("write", filename, half)
        except OSError as error:  # as the library says it
            said = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
            raise SafetensorError(said) from error
        tensors(values, filename, metadata=metadata)

    safetensors.torch.serialize_file = serialised


def _counted(watched: Watched, kind: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    def counted(file: int, *arguments: Any) -> Any:
        watched.operation(kind, file)
        return whole(file, *arguments)

    return counted


def _audit(watched: Watched, event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        path, mode, flags = args
        if isinstance(path, int | None):
            return
        if WRITES & set(mode or "") or (mode is None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            watched.operation("open", path)
    elif event in ("os.rename", "os.link", "os.symlink"):
        watched.operation("rename", args[1])
    elif event == "os.mkdir":
        watched.operation("mkdir", args[0])
    elif event in ("os.remove", "os.rmdir"):
        path, folder = args
        where = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else ""
        watched.operation("remove", os.path.join(where, os.fsdecode(path)))
