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
    model: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    family: Annotated[str | None, typer.Option(help="Model type of the dense model: llama.")] = None,
    head_dim: Annotated[int | None, typer.Option(min=1, help="Size of one attention head.")] = None,
    query_groups: Annotated[
        str | None, typer.Option(help="first or spread: how query heads share KV heads, if unknown.")
    ] = None,
    overwrite: arguments.Overwrite = False,
    allow_remote_code: arguments.RemoteCode = False,
) -> None:
    """Convert a checkpoint pruned by another tool: rows and columns of zeros are removed."""
    from darwinlm.errors import RecipeError
    from darwinlm.importing.convert import import_model
    from darwinlm.importing.foreign import QUERY_GROUPS

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
