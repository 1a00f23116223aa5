"""`darwinlm import`: pruned checkpoints of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from darwinlm.cli.app import RemoteCode, app
from darwinlm.cli.export import OverwriteOption, show_report


@app.command(name="import")
def import_command(
    model: Annotated[Path, typer.Argument(help="Folder with config.json and safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to be written.")],
    family: Annotated[str | None, typer.Option("--family", help="Model type of the dense model, llama ...")] = None,
    head_dim: Annotated[int | None, typer.Option("--head-dim", min=1, help="Columns of a head.")] = None,
    query_groups: Annotated[
        str | None,
        typer.Option("--query-groups", help="first or spread: how query heads meet KV heads where it isn't known."),
    ] = None,
    overwrite: OverwriteOption = False,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Convert a pruned checkpoint of another tool: zeros are cut out, layers may have shapes of their own."""
    from darwinlm.errors import RecipeError
    from darwinlm.importing import import_model
    from darwinlm.importing.foreign import QUERY_GROUPS

    if query_groups is not None and query_groups not in QUERY_GROUPS:
        raise RecipeError(f"--query-groups {query_groups}: must be {' or '.join(QUERY_GROUPS)}")
    console = Console()
    report = import_model(
        model,
        out,
        family=family,
        head_size=head_dim,
        query_groups=query_groups,
        overwrite=overwrite,
        allow_remote_code=allow_remote_code,
        say=lambda message: console.print(message, highlight=False, markup=False),
    )
    show_report(console, report)
