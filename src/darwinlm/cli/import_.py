"""`darwinlm import`: the paper's published checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import USE, command
from darwinlm.cli.export import show_report


@command(USE, "darwinlm import PUBLISHED --out imported", name="import")
def import_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder with config.json and safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.")],
    query_groups: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How query heads share KV heads, if the command asks: first or spread."),
    ] = None,
    overwrite: arguments.Overwrite = False,
) -> None:
    """Convert a model published by the authors of DarwinLM, whose configuration doesn't describe its layers."""
    from darwinlm.formats.transformers.import_published import SHARING, import_model
    from darwinlm.runtime.errors import RecipeError

    if query_groups is not None and query_groups not in SHARING:
        raise RecipeError(f"--query-groups {query_groups}: must be {' or '.join(SHARING)}")
    console = terminal.console()
    show_report(console, import_model(model, out, sharing=query_groups, overwrite=overwrite, say=terminal.say))
