"""`darwinlm scores`: saved evaluations side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from darwinlm.cli.app import app
from darwinlm.cli.tables import show_tables


@app.command()
def scores(
    files: Annotated[list[Path], typer.Argument(help="What darwinlm evaluate wrote with --out, one for each model.")],
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Markdown file.")] = None,
) -> None:
    """Compare saved evaluations: one table, and the difference of two with its standard error."""
    from darwinlm.evaluation.side_by_side import read_saved, task_table, text_table

    saved = read_saved(files)
    show_tables(filter(None, (text_table(saved), task_table(saved))), Console(), markdown)
