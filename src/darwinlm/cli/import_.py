"""`darwinlm import`: pruned checkpoints of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import USE, command
from darwinlm.cli.export import show_report


@command(USE, "darwinlm import PRUNED --out imported", name="import")
def import_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder with config.json and safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to write.")],
    family: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Model type of the original model, such as llama. Without it, detected."),
    ] = None,
    head_dim: Annotated[
        int | None, arguments.number("COLUMNS", "Size of one attention head (without it, the configuration's)")
    ] = None,
    query_groups: Annotated[
        str | None, typer.Option(metavar="NAME", help="first or spread: how query heads share KV heads, if unknown.")
    ] = None,
    overwrite: arguments.Overwrite = False,
    allow_remote_code: arguments.RemoteCode = False,
) -> None:
    """Convert a checkpoint pruned by another tool: rows and columns of zeros are removed."""
    from darwinlm.importing.convert import import_model
    from darwinlm.importing.foreign import QUERY_GROUPS
    from darwinlm.runtime.errors import RecipeError

    if query_groups is not None and query_groups not in QUERY_GROUPS:
        raise RecipeError(f"--query-groups {query_groups}: must be {' or '.join(QUERY_GROUPS)}")
    console = terminal.console()
    report = import_model(
        model,
        out,
        family=family,
        head_size=head_dim,
        query_groups=query_groups,
        overwrite=overwrite,
        allow_remote_code=allow_remote_code,
        say=terminal.say,
    )
    show_report(console, report)
