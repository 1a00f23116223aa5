"""Outputs that would destroy what a command reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.limits import wrong_name

Given = str | Path | None
"""A path, a name on the hub, a source of text with a field, or nothing."""


def check_output(out: Path, inputs: Sequence[Given], text: Sequence[Given] = (), *, resumed: bool = False) -> None:
    """Refuse a pipe or a device, and what is an input or holds one, lies in a folder of text, or is a file of an input.

    Links are resolved. What is not on this machine can't be harmed. A `resumed` output may be an older file. Names that
    aren't UTF-8 are refused too: neither records nor safetensors can hold them. Raises ArtifactError, which names both.
    """
    for path in (out, *inputs, *text):
        if wrong := wrong_name(str(path)):
            raise ArtifactError(f"{path}: {wrong}")
    output = _real(out)
    is_replaceable = output.is_file() or output.is_dir() or not os.path.exists(output)  # noqa: PTH110 - as in _real
    if not is_replaceable or out.absolute().parent == Path("/dev"):  # its links may lead to files
        raise ArtifactError(f"--out {out} is a pipe or a device, which would be replaced: choose another place")
    for source in (*inputs, *text):
        names = [name for name in (str(source or ""), str(source).rpartition("#")[0]) if name]
        path = next((path for path in map(_real, names) if os.path.exists(path)), None)  # noqa: PTH110 - as in _real
        if path is None:
            continue
        if output in (path, *path.parents):
            relation = "is or holds"
        elif path in output.parents and source in text:
            relation = "lies in"
        elif path in output.parents and output.is_file() and not resumed:
            relation = "is a file of"
        else:
            continue
        raise ArtifactError(f"--out {out} {relation} {source}, which this command reads: choose another place")


def _real(path: str | Path) -> Path:
    """A path with all links resolved, also if it doesn't exist; unlike methods of `Path`, this raises nothing."""
    return Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111
