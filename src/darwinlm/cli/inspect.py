"""`darwinlm inspect`: the contents of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LOOK, command
from darwinlm.runtime import amounts, tables

SHARES = (0.75, 0.5, 0.25)
"""Shares of the columns in the table; JSON has more."""

POINTS = 100


@command(LOOK, "darwinlm inspect runs/half", "darwinlm inspect runs/half --json > curves.json")
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of prune.")],
    as_json: arguments.Json = False,
) -> None:
    """Show what each attention and MLP loses at every width, and the loss of the model that this predicts."""
    from darwinlm.database.finished import describe, find_database, read_curves

    stage = find_database(folder)
    about: dict[str, Any] = describe(stage)
    if as_json:
        terminal.print_json({**about, "modules": [_points(curves) for curves in read_curves(stage)]})
        return
    console = terminal.console()
    modules = list(read_curves(stage))
    estimated = any(curves.losses is not None for curves in modules)
    losses = ("KL at 50%", "KL at 0") if estimated else ()
    headings = ("block", "module", "heads", "columns", *(f"{share:.0%}" for share in SHARES), *losses)
    rows = []
    for curves in modules:
        width, heads = len(curves.errors) - 1, _heads(curves.kind, curves.variant)
        cells = [str(width), *(f"{float(curves.errors[round(share * width)]):.4f}" for share in SHARES)]
        if curves.losses is not None:
            cells += [f"{float(curves.losses[at]):.4f}" for at in (round(0.5 * width), 0)]
        rows.append((str(curves.block), curves.kind, "" if heads is None else str(heads), *cells))
    table = tables.terminal(headings, rows)
    table.columns[0].justify, table.columns[1].justify, table.columns[1].no_wrap = "right", "left", True
    console.print(table)
    calibration = about["calibration"]
    notes = [
        "Under each share of the columns kept: squared error of the module's output, relative to the output.",
        "heads: query heads kept in every KV group. columns: inputs of the output projection.",
    ]
    if estimated:
        notes.append("KL: estimated KL to the dense model in nats/token, with this module pruned alone.")
    notes.append(
        f"{about['blocks']} blocks, {amounts.size(about['bytes'])}, units {about['units']}, calibrated on "
        f"{calibration['tokens']:,} tokens of {calibration['source']}"
    )
    console.print("\n".join(notes))


def _points(curves: Any) -> dict[str, Any]:
    width = len(curves.errors) - 1
    points = sorted({round(point * width / POINTS) for point in range(POINTS + 1)})
    entry = {"block": curves.block, "kind": curves.kind, "heads_per_group": _heads(curves.kind, curves.variant)}
    curve = {"columns": points, "errors": [float(curves.errors[point]) for point in points]}
    if curves.losses is not None:
        curve["losses"] = [float(curves.losses[point]) for point in points]
    return {**entry, "width": width, **curve}


def _heads(kind: str, variant: int) -> int | str | None:
    return None if kind == "mlp" else variant or "any"
