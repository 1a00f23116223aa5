"""`darwinlm schema` and `darwinlm version`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from darwinlm import __version__
from darwinlm.cli.app import app


@app.command()
def schema() -> None:
    """Print every field of the recipe with its default and meaning."""
    from darwinlm.recipe import describe_fields

    table = Table("field", "default", "meaning", title="recipe")
    for row in describe_fields():
        table.add_row(*row)
    Console().print(table)


@app.command()
def version() -> None:
    """Print the version."""
    Console().print(__version__, highlight=False)
