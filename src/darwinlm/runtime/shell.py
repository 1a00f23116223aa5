"""Paths in commands that people copy into a shell."""

from __future__ import annotations

import shlex


def word(path: object) -> str:
    """A path or a model's name as one word of a command: quoted where needed, and never taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
