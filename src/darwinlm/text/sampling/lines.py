"""A file of JSON lines that grows, and stays whole when its writer is interrupted."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from darwinlm.runtime.errors import StorageError


class JsonLines:
    """Records that are written as soon as they are known; those of an interrupted run are in `records`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.records: list[dict[str, Any]] = []
        if path.exists():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]  # an interruption cuts the last line
            path.write_bytes(whole)
            self.records += map(json.loads, whole.splitlines())

    def __enter__(self) -> JsonLines:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # Everything was flushed; a line that failed would fail again.
            self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Append a record. Raises StorageError."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"can't write {self.path}: {error.strerror}") from error
