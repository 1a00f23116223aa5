"""Kinds of files that hold text, by the names of the files."""

from __future__ import annotations

import mimetypes
from functools import lru_cache
from pathlib import Path

PROSE = (".txt", ".txt.gz", ".md", ".rst")
"""Text whose documents two or more blank lines separate."""
PAGES = (".html", ".htm")
JSON = (".jsonl", ".jsonl.gz", ".json")
TABLES = (".csv", ".csv.gz", ".tsv")
EXTENSIONS = (*PROSE, *PAGES, *JSON, *TABLES, ".parquet", ".arrow")
"""Supported file extensions, beside those of program code."""


def extension_of(path: Path) -> str | None:
    """The extension of a file among `EXTENSIONS`."""
    name = path.name.lower()
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), None)


def is_code(path: Path) -> bool:
    """Whether a file's name is one of program code or configuration: Pygments knows its language."""
    return extension_of(path) is None and _known_to_pygments(path.suffix or path.name)


@lru_cache(maxsize=4096)
def _known_to_pygments(ending: str) -> bool:
    from pygments.lexers import find_lexer_class_for_filename

    name = f"file{ending}" if ending.startswith(".") else ending
    return not _guessed_type(name).startswith("image/") and find_lexer_class_for_filename(name) is not None


def is_media(path: Path) -> bool:
    """Whether a file's name is one of an image, a sound, a film or a font, which hold no text."""
    return _guessed_type(path.name).startswith(("image/", "audio/", "video/", "font/"))


def _guessed_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or ""
