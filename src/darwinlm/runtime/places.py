"""Outputs that would destroy what a command reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.limits import is_utf8

Given = str | Path | None
"""A path, a name on the hub, a source of text with a field, or nothing."""


def check_output(out: Path, inputs: Sequence[Given], text: Sequence[Given] = (), *, resumed: bool = False) -> None:
    """Refuse a pipe or a device, and what is an input or holds one, lies in a folder of text, or is a file of an input.

    Links are resolved. What is not on this machine can't be harmed. A `resumed` output may be an older file. Names that
    aren't UTF-8 are refused too: neither records nor safetensors can hold them. Raises ArtifactError, which names both.
    """
    for each in (out, *inputs, *text):
        if not is_utf8(str(each)):
            raise ArtifactError(f"{each} has a name that isn't UTF-8: rename it")
    there = _real(out)
    known = there.is_file() or there.is_dir() or not os.path.exists(there)  # noqa: PTH110 - as in _real
    if not known or out.absolute().parent == Path("/dev"):  # its links may lead to files
        raise ArtifactError(f"--out {out} is a pipe or a device, which would be replaced: choose another place")
    for given in (*inputs, *text):
        names = [name for name in (str(given or ""), str(given).rpartition("#")[0]) if name]
        path = next((path for path in map(_real, names) if os.path.exists(path)), None)  # noqa: PTH110 - as in _real
        if path is None:
            continue
        if there in (path, *path.parents):
            what = "is or holds"
        elif path in there.parents and given in text:
            what = "lies in"
        elif path in there.parents and there.is_file() and not resumed:
            what = "is a file of"
        else:
            continue
        raise ArtifactError(f"--out {out} {what} {given}, which this command reads: choose another place")


def _real(given: str | Path) -> Path:
    """A path behind all links, also of what isn't there. Unlike methods of `Path`, these functions raise nothing."""
    return Path(os.path.realpath(os.path.expanduser(given)))  # noqa: PTH111
