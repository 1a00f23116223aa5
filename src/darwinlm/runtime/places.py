"""Outputs that would destroy what a command reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.limits import is_utf8

Given = str | Path | None
"""A path, a name on the hub, a source of text with a field, or nothing."""


def check_output(
    out: Path, option: str, inputs: Sequence[Given], text: Sequence[Given] = (), *, resumed: bool = False
) -> None:
    """Refuse an output that is an input or holds one, lies in a folder of text, or is an older file of an input.

    Links are resolved. What is not on this machine can't be harmed. A `resumed` output may be an older file. Names that
    aren't UTF-8 are refused too: neither records nor safetensors can hold them.

    Raises:
        ArtifactError: The message names the output and the input.
    """
    for each in (out, *inputs, *text):
        if not is_utf8(str(each)):
            raise ArtifactError(f"{each} has a name that isn't UTF-8: rename it")
    try:
        there, above = _identity(out), {_identity(path) for path in out.resolve().parents}
    except RuntimeError as error:  # from 3.13 on, Python takes such a link as a name like any other
        raise ArtifactError(
            f"{option} {out} leads through a link to itself: remove it, or choose another place"
        ) from error
    for given, path in ((given, _local(given)) for given in (*inputs, *text)):
        if path is None:
            continue
        whole = path.resolve()
        inside = _identity(whole) in above
        if there is not None and there in map(_identity, (whole, *whole.parents)):
            what = "is or holds"
        elif inside and given in text:
            what = "lies in"
        elif inside and out.is_file() and not resumed:
            what = "is a file of"
        else:
            continue
        raise ArtifactError(f"{option} {out} {what} {given}, which this command reads: choose another place")


def _local(given: Given) -> Path | None:
    """The file or folder that is meant; None for what isn't on this machine."""
    if given is None:
        return None
    for name in (str(given), str(given).rpartition("#")[0]):
        try:
            if name and Path(name).expanduser().exists():
                return Path(name).expanduser()
        except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, or with a zero byte
            return None
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from others, whatever its name; None if there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
