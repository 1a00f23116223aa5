"""Terminal output of commands: width, and consoles."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from darwinlm.runtime import parallel, tables
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.limits import visible
from darwinlm.runtime.safe_console import Terminal

if TYPE_CHECKING:
    from darwinlm.runtime.console import Reporter

BEGUN = working_time()
"""Start of the command, before slow imports."""

PIPED_WIDTH = 1000
"""Width of output without a terminal; rich would cut tables at 80 columns."""


def console() -> Terminal:
    """Console for plain text, silent in all processes but the first. Piped output isn't wrapped."""
    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    width = PIPED_WIDTH if wide else None
    return Terminal(quiet=not parallel.is_main(), width=width, markup=False, highlight=False, emoji=False)


def reporter() -> Reporter:
    """Reporter for progress."""
    from darwinlm.runtime.console import Reporter

    return Reporter(console())


def say(message: str) -> None:
    """Print a line of progress to standard error, apart from results."""
    if parallel.is_main():
        Terminal(stderr=True).print(message, markup=False, highlight=False, emoji=False, soft_wrap=True)


def show_tables(several: Iterable[tables.Table]) -> None:
    """Print tables with remarks."""
    output = console()
    for table in several:
        output.print(tables.terminal(table))
        for remark in table.remarks:
            output.print(remark, soft_wrap=True)


def print_json(value: object) -> None:
    """Print one JSON document to standard output."""
    if parallel.is_main():
        wide = (sys.stdout.encoding or "").lower().startswith("utf")
        text = json.dumps(value, indent=1, ensure_ascii=not wide, allow_nan=False)
        try:
            sys.stdout.write(visible(text) + "\n")  # JSON escapes most control characters itself
            sys.stdout.flush()
        except BrokenPipeError:
            raise BrokenPipeError from None  # with an errno, click would exit with status 1
