"""Every format by its name."""

from __future__ import annotations

from pathlib import Path

from darwinlm.formats.format import Format
from darwinlm.formats.gguf.gguf_format import GGUF
from darwinlm.formats.transformers.transformers_format import TRANSFORMERS

FORMATS: dict[str, Format] = {kind.name: kind for kind in (GGUF, TRANSFORMERS)}
"""A new format is a subclass of `Format` in a package of its own, and an entry here."""


def format_of(path: Path) -> Format | None:
    """The format of an existing file or folder, by its kind and name; None if it is in none of them."""
    return next((kind for kind in FORMATS.values() if kind.holds(path)), None)
