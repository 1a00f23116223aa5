"""Tables of text for the terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from textwrap import fill
from typing import Any

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from darwinlm.runtime.limits import visible

Table = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]
"""Headings, rows of cells, and remarks below."""


def terminal(headings: Sequence[str], rows: Sequence[Sequence[str]], *, bold: int | None = None) -> TerminalTable:
    """A table for the terminal: names on the left, and figures on the right, which aren't cut.

    `bold` is the index of a row to stress.
    """
    table = TerminalTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        figures = [part for row in rows for part in re.split(r" (?=\()", row[place])] if place else []
        least = max(map(len, [*heading.split(), *figures]))
        justify: Any = "right" if place else "left"
        table.add_column(
            Text(fill(heading, 10) if place else heading), justify=justify, overflow="fold", min_width=least
        )
    for number, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold" if number == bold else None)
    return table


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], remarks: Sequence[str] = ()) -> str:
    """A Markdown table, names on the left and figures on the right, with remarks below.

    Names from outside become neither HTML nor further cells; bold figures stay so.
    """
    quoted = [[_plain(cell) for cell in row] for row in (headings, *rows)]
    lines = [quoted[0], ["---", *["---:"] * (len(headings) - 1)], *quoted[1:]]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([text, *map(_plain, remarks)]) + "\n"


def _plain(text: str) -> str:
    return escape(visible(" ".join(text.split())), quote=False).replace("|", "\\|")
