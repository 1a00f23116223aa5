"""Where commands print: how much, how wide, and to whom."""

from __future__ import annotations

import json
import os
import sys
import warnings
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from rich.console import Console

from darwinlm import parallel

if TYPE_CHECKING:
    from darwinlm.console import Reporter

PIPED_WIDTH = 1000
"""Columns of output that no terminal bounds: rich would cut tables off at 80."""


class Verbosity(IntEnum):
    """How much a command tells."""

    QUIET = -1
    NORMAL = 0
    VERBOSE = 1


_level = [Verbosity.NORMAL]


class _Console(Console):
    """Leaves a closed pipe to `main`, where rich would end the process with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def set_verbosity(level: Verbosity) -> None:
    """Choose what every command prints from now on; libraries that aren't imported yet follow."""
    _level[0] = level
    if level is Verbosity.VERBOSE:
        os.environ["TRANSFORMERS_VERBOSITY"] = "info"
        warnings.simplefilter("default")


def verbosity() -> Verbosity:
    """What `-q` and `-v` ask for."""
    return _level[0]


def console(*, stderr: bool = False) -> Console:
    """For results; silent in all processes but the first. Output that is piped isn't wrapped."""
    stream = sys.stderr if stderr else sys.stdout
    wide = not stream.isatty() and "COLUMNS" not in os.environ
    return _Console(stderr=stderr, quiet=not parallel.is_main(), width=PIPED_WIDTH if wide else None)


def reporter() -> Reporter:
    """For progress; silent under `-q`."""
    from darwinlm.console import Reporter

    level = verbosity()
    return Reporter(console(), quiet=level is Verbosity.QUIET, every_step=level is Verbosity.VERBOSE)


def say(message: str) -> None:
    """One line of progress; none under `-q`."""
    if verbosity() is not Verbosity.QUIET:
        console().print(message, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output, and nothing else."""
    if parallel.is_main():
        try:
            sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise BrokenPipeError from None  # with its number, click would end the process with status 1
