"""`darwinlm database` and `darwinlm inspect`: make a database without searching in it, and look into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from darwinlm.cli.app import ModelArgument, OutOption, RecipeOption, RemoteCode, SetOption, TextOption, app

SHARES = (0.9, 0.75, 0.5, 0.25, 0.1)
POINTS = 100


@app.command()
def database(
    model: ModelArgument = None,
    out: OutOption = Path("runs/database"),
    text: TextOption = None,
    recipe: RecipeOption = None,
    assignments: SetOption = None,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Calibrate and factorise every module; `darwinlm prune --database OUT` then searches in the result."""
    from darwinlm import parallel
    from darwinlm.console import Reporter
    from darwinlm.pipeline import run_stages
    from darwinlm.recipe import load_recipe
    from darwinlm.run import Run

    overrides = {"model": model, "text.source": text, "allow_remote_code": allow_remote_code or None}
    chosen = load_recipe(recipe, assignments or (), overrides)
    run = Run(chosen, out, Reporter(Console()))
    stage = run_stages(run, "database").database.stage
    size = sum(path.stat().st_size for path in stage.folder.glob("block_*"))
    console = Console(quiet=not parallel.is_main())
    console.print(f"{stage.folder}: {size / 1e6:,.1f} MB; see darwinlm inspect {out}", highlight=False, soft_wrap=True)


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Of a database, or of the run that made it.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: a hundred points of every curve.")] = False,
) -> None:
    """Show how much of each module's output is lost at every width, and what that costs the model."""
    from darwinlm.database.finished import describe, find_database, read_curves

    stage = find_database(folder)
    about: dict[str, Any] = describe(stage)
    if as_json:
        curves = []
        for found in read_curves(stage):
            width = len(found.errors) - 1
            points = sorted({round(point * width / POINTS) for point in range(POINTS + 1)})
            own = {"block": found.block, "kind": found.kind, "heads_per_group": _heads(found.kind, found.variant)}
            curve = {"columns": points, "errors": [float(found.errors[point]) for point in points]}
            if found.losses is not None:
                curve["losses"] = [float(found.losses[point]) for point in points]
            curves.append({**own, "width": width, **curve})
        typer.echo(json.dumps({**about, "modules": curves}, allow_nan=False))
        return
    table = Table(
        title="by share of the columns kept: squared output error over the output, estimated KL to the dense model"
    )
    shares = [f"{share:.0%}" for share in SHARES]
    for column in ("block", "module", "heads per group", "columns", *shares, "KL at 50%", "KL at 0"):
        table.add_column(column, justify="right")
    for found in read_curves(stage):
        width = len(found.errors) - 1
        heads = _heads(found.kind, found.variant)
        cells = [f"{float(found.errors[round(share * width)]):.4f}" for share in SHARES]
        if found.losses is not None:
            cells += [f"{float(found.losses[at]):.4f}" for at in (round(0.5 * width), 0)]
        table.add_row(str(found.block), found.kind, "" if heads is None else str(heads), str(width), *cells)
    console = Console()
    console.print(table)
    calibration = about["calibration"]
    console.print(
        f"{about['blocks']} blocks, {about['bytes'] / 1e6:,.1f} MB, units {about['units']}, calibrated on "
        f"{calibration['tokens']:,} tokens of {calibration['source']}",
        highlight=False,
        markup=False,
    )


def _heads(kind: str, variant: int) -> int | str | None:
    return None if kind == "mlp" else variant or "any"
