"""Parts of its inputs that a step reads and that don't identify them: noted as it works, and compared before reuse.

A model is identified by its weights and configuration. Its tokenizer, its generation settings and the files that are
carried along with it are parts of their own: a result depends on them only if its step has read them. Reading one notes
it, so that no step keeps a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

Reads = dict[str, dict[str, str]]
"""Identity of each part that was read, by the digest of the input and the name of the part."""

Keep = Callable[[Reads], object]

_noted: ContextVar[tuple[Reads, Path, Keep] | None] = ContextVar("reads", default=None)


@runtime_checkable
class Readable(Protocol):
    """An input with parts that aren't in its digest."""

    @property
    def source(self) -> str:
        """Name of the input as the user gave it."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def digest(self) -> str:
        """What identifies the input without its parts."""

    def part(self, name: str) -> str:
        """What identifies a part now."""


@contextmanager
def noted(folder: Path, keep: Keep = lambda reads: None) -> Iterator[Reads]:
    """What the body reads of its inputs' parts. What it writes itself, into `folder`, is no input.

    `keep` gets all that was read, whenever something is read for the first time.
    """
    reads: Reads = {}
    token = _noted.set((reads, folder, keep))
    try:
        yield reads
    finally:
        _noted.reset(token)


def note(source: Readable, part: str) -> None:
    """Note that a part is read; does nothing outside of a step."""
    if (noting := _noted.get()) is None:
        return
    reads, folder, keep = noting
    if source.folder.absolute().is_relative_to(folder.absolute()):
        return
    parts, identity = reads.setdefault(source.digest, {}), source.part(part)
    if parts.get(part) != identity:
        parts[part] = identity
        keep(reads)


def readable_inputs(value: object) -> Iterator[Readable]:
    """The inputs with parts among a step's inputs, also inside of others."""
    if isinstance(value, Readable):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from readable_inputs(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from readable_inputs(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from readable_inputs(getattr(value, field.name))


def what_differs(reads: Mapping[str, Mapping[str, str]], inputs: Mapping[str, object]) -> str | None:
    """The first part of an input that isn't as it was read; None if all are."""
    sources = [*readable_inputs(inputs)]
    for digest, parts in reads.items():
        candidates = [source for source in sources if source.digest == digest]
        for name, identity in parts.items():
            if all(source.part(name) != identity for source in candidates):
                model = candidates[0].source if candidates else "a model"
                return f"the {name} of {model} changed"
    return None
