"""A case of the corpus, and what cases write."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED, ANY = "refused", "any"
HUGE = (0, -1, 2**20, 2**31, 2**40, 2**63, 10**30)
ODD = ("four", "", None, True, [], {}, [1, 2], 1.5, float("nan"), float("inf"), "9" * 5000)
DEEP = "[" * 5000 + "]" * 5000


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: unique, for people.
        reader: which reader meets it; see `READERS` in `test_corpus.py`.
        write: puts the files into a folder; gets the folder of a whole tiny model.
        outcome: `REFUSED` or `ANY`.
    """

    name: str
    reader: str
    write: Callable[[Path, Path], None]
    outcome: str = REFUSED


def copied(model: Path, folder: Path) -> None:
    """The whole tiny model in `folder`; files that a case changes are written anew, never in place."""
    for path in model.iterdir():
        (folder / path.name).unlink(missing_ok=True)
        shutil.copy(path, folder / path.name)


def changed(name: str, **fields: Any) -> Callable[[Path, Path], None]:
    """A model one of whose JSON files has other fields."""

    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        tree = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(tree | fields))

    return write


def replaced(name: str, content: bytes | str) -> Callable[[Path, Path], None]:
    """A model one of whose files has other bytes."""

    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def alone(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[Path, Path], None]:
    """A single file; what is large is made only when the case is met."""

    def write(folder: Path, _: Path) -> None:
        made = content() if callable(content) else content
        (folder / name).write_bytes(made.encode() if isinstance(made, str) else made)

    return write
