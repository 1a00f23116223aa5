"""Tables of measurements in the terminal, and in a Markdown file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from darwinlm.evaluation.summary import Table


def show_tables(tables: Iterable[Table], console: Console, markdown: Path | None) -> None:
    """Print tables with remarks, and write them to a Markdown file if given. Raises StorageError, BusyError."""
    from darwinlm.artifact import write_text
    from darwinlm.evaluation import summary
    from darwinlm.lock import hold_target

    parts: list[str] = []
    for headings, cells, remarks in tables:
        console.print(summary.terminal(headings, cells))
        for remark in remarks:
            console.print(remark, highlight=False, markup=False, soft_wrap=True)
        parts.append(summary.markdown(headings, cells, remarks))
    if markdown is not None:
        with hold_target(markdown):
            write_text(markdown, "\n".join(parts))
