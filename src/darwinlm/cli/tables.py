"""Tables of measurements in the terminal, and in a Markdown file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from darwinlm import tables


def show_tables(several: Iterable[tables.Table], console: Console, markdown: Path | None) -> None:
    """Print tables with remarks, and write them to a Markdown file if given. Raises StorageError, BusyError."""
    from darwinlm.artifact import write_text
    from darwinlm.lock import hold_target

    parts: list[str] = []
    for headings, cells, remarks in several:
        console.print(tables.terminal(headings, cells))
        for remark in remarks:
            console.print(remark, soft_wrap=True)
        parts.append(tables.markdown(headings, cells, remarks))
    if markdown is not None:
        with hold_target(markdown):
            write_text(markdown, "\n".join(parts))
