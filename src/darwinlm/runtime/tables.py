"""Tables of text for the terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING, Literal

from darwinlm.runtime.limits import visible

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        headings: One heading for each column. The first column has names, the others have figures.
        rows: Cells under the headings.
        remarks: Sentences below the table.
        final: Whether the last row is the one to stress.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = ()
    final: bool = False


def terminal(table: Table) -> TerminalTable:
    """A table for the terminal, without its remarks: names on the left, and figures on the right, which aren't cut."""
    from rich import box
    from rich.table import Table as TerminalTable
    from rich.text import Text

    drawn = TerminalTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column, heading in enumerate(table.headings):
        figures = [part for row in table.rows for part in re.split(r" (?=\()", row[column])] if column else []
        least = max(map(len, [*heading.split(), *figures]))
        justify: Literal["left", "right"] = "right" if column else "left"
        drawn.add_column(
            Text(fill(heading, 10) if column else heading), justify=justify, overflow="fold", min_width=least
        )
    for number, row in enumerate(table.rows, 1):
        drawn.add_row(*map(Text, row), style="bold" if table.final and number == len(table.rows) else None)
    return drawn


def markdown(table: Table) -> str:
    """A Markdown table, names on the left and figures on the right, with its remarks below; a final row is bold.

    Names from outside become neither HTML, nor links and images, nor further cells.
    """
    headings, *rows = ([_plain(cell) for cell in row] for row in (table.headings, *table.rows))
    if table.final and rows:
        rows[-1] = [f"**{cell}**" for cell in rows[-1]]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([text, *map(_plain, table.remarks)]) + "\n"


def html(table: Table) -> str:
    """An HTML table for notebooks, with its remarks below; names from outside become no markup."""
    head = "".join(f"<th>{_shown(heading)}</th>" for heading in table.headings)
    rows = [f"<tr>{''.join(f'<td>{_shown(cell)}</td>' for cell in row)}</tr>" for row in table.rows]
    remarks = "".join(f"<p>{_shown(remark)}</p>" for remark in table.remarks)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{remarks}"


def _shown(text: str) -> str:
    return escape(visible(text))


def _plain(text: str) -> str:
    return re.sub(r"([\\|\[\]])", r"\\\1", escape(visible(" ".join(text.split())), quote=False))
