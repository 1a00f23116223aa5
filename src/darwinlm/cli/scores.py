"""`darwinlm scores`: saved evaluations in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LOOK, command


@command(LOOK, "darwinlm scores dense.json half.json")
def scores(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Files from darwinlm evaluate --out, one per model.")
    ],
    markdown: arguments.Markdown = None,
    as_json: arguments.Json = False,
) -> None:
    """Compare saved evaluations in one table. Two files also give the difference and its standard error."""
    from darwinlm.evaluation.side_by_side import read_saved, task_table, text_table
    from darwinlm.runtime.places import check_output

    if markdown is not None:
        check_output(markdown, "--markdown", files)
    saved = read_saved(files)
    if as_json:
        terminal.print_json(saved)
        return
    terminal.show_tables(filter(None, (text_table(saved), task_table(saved))), markdown)
