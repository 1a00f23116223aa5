"""`darwinlm schema`: the settings of the recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LEARN, command
from darwinlm.runtime import tables

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
        typer.Argument(
            metavar="SECTION",
            help="Section of the recipe, one setting, or all. Without it, the ten settings to know first.",
        ),
    ] = None,
    as_json: arguments.Json = False,
) -> None:
    """List settings of the recipe with their defaults and meanings. Change them with --set or a YAML recipe."""
    from darwinlm.recipe import describe_fields
    from darwinlm.runtime.errors import RecipeError
    from darwinlm.runtime.limits import suggestion

    fields = describe_fields()
    sections = list(dict.fromkeys(name.partition(".")[0] for name, _, _ in fields))
    if section is None:
        chosen = [row for name in FIRST for row in fields if row[0] == name]
    elif section == "all":
        chosen = fields
    else:
        chosen = [row for row in fields if row[0] == section or row[0].startswith(f"{section}.")]
    if not chosen:
        known = [*sections, *(name for name, _, _ in fields)]
        hint = suggestion(str(section), known, f"sections are {', '.join(sections)}")
        raise RecipeError(f"the recipe has no section '{section}': {hint}")
    if as_json:
        terminal.print_json([{"field": name, "default": value, "meaning": about} for name, value, about in chosen])
        return
    rows = [(name, value, " ".join(about.split())) for name, value, about in chosen]
    table = tables.terminal(("setting", "default", "meaning"), rows)
    for column in table.columns:
        column.justify, column.overflow = "left", "fold"
    table.columns[1].max_width = 24
    console = terminal.console()
    console.print(table)
    if section is None:
        console.print(f"\nMore: darwinlm schema SECTION, with one of {', '.join(sections)}; or darwinlm schema all.")
