"""`darwinlm schema` and `darwinlm version`."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from darwinlm import __version__
from darwinlm.cli import terminal
from darwinlm.cli.app import LEARN, JsonOption, command

FIRST = (
    "budget.keep",
    "text.source",
    "text.calibration_tokens",
    "text.sequence_length",
    "units.quantisation",
    "time",
    "recovery.tokens",
    "recovery.learning_rate",
    "compute.dtype",
    "compute.batch_tokens",
)
"""Settings that a user may want: size, text, quantiser, time, training, precision and memory."""


@command(LEARN, "darwinlm schema", "darwinlm schema recovery", "darwinlm schema all")
def schema(
    section: Annotated[
        str | None,
        typer.Argument(help="Section of the recipe, or all.", show_default="the ten settings to know first"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List settings of the recipe with their defaults and meanings. Change them with --set or a YAML recipe."""
    from darwinlm.errors import RecipeError
    from darwinlm.recipe import describe_fields

    fields = describe_fields()
    sections = list(dict.fromkeys(name.partition(".")[0] for name, _, _ in fields))
    if section is None:
        chosen = [row for name in FIRST for row in fields if row[0] == name]
    elif section == "all":
        chosen = fields
    else:
        chosen = [row for row in fields if row[0] == section or row[0].startswith(f"{section}.")]
    if not chosen:
        near = difflib.get_close_matches(str(section), [*sections, *(name for name, _, _ in fields)], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"sections are {', '.join(sections)}"
        raise RecipeError(f"the recipe has no section '{section}': {hint}")
    if as_json:
        terminal.print_json([{"field": name, "default": value, "meaning": about} for name, value, about in chosen])
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("setting", overflow="fold")
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("meaning")
    for name, value, about in chosen:
        table.add_row(Text(name), Text(value), Text(" ".join(about.split())))
    console = terminal.console()
    console.print(table)
    if section is None:
        console.print(
            f"\nMore: darwinlm schema SECTION, with one of {', '.join(sections)}; or darwinlm schema all.",
            highlight=False,
            markup=False,
        )


@command(LEARN)
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
