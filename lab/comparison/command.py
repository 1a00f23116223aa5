"""`python -m lab compare`: other methods under the same budget, on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from darwinlm.cli import arguments, terminal
from lab.app import command


@command("python -m lab compare MODEL --methods uniform,ziplm,darwinlm --keep 50% --text TEXT --out runs/comparison")
@arguments.with_budget
def compare(
    model: arguments.Model = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="METHODS",
            help="all, or some, with commas: uniform, random, magnitude, minitron, shortgpt, ziplm, sheared, darwinlm; "
            "for mixtures of experts also reap and frequency; names of variants. Each may end in +refit, "
            "+recovery or +refit+recovery.",
        ),
    ] = "all",
    out: arguments.Out = Path("runs/comparison"),
    text: arguments.Text = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SOURCE", help="Another text to measure on, with its name in the table; repeatable."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RECIPE", help="Another search as a method: its name and YAML file; repeatable."),
    ] = None,
    suite: arguments.Suite = None,
    data_dir: arguments.DataDir = None,
    limit: arguments.Limit = None,
    recipe: arguments.RecipeFile = None,
    assignments: arguments.Set = None,
    **budget: Any,
) -> None:
    """Prune with several methods under the same budget and compare them in one table."""
    from darwinlm.recipe import load_recipe, options
    from darwinlm.runtime import parallel, tables
    from darwinlm.runtime.artifact import write_text
    from lab.comparison.compare import ComparisonRequest, compare_methods
    from lab.comparison.entries import parse_methods, parse_named
    from lab.comparison.table import comparison_cells

    chosen = load_recipe(recipe, assignments or (), options(model=model, **budget, text=text))
    domains, variants = parse_named("--domain", domain or ()), parse_named("--variant", variant or ())
    methods_with_steps = parse_methods(methods, chosen, [name for name, _ in variants])
    wanted = ComparisonRequest(methods_with_steps, domains, variants, suite, data_dir, limit, every=methods == "all")
    page = out / "comparison.md"
    record = compare_methods(chosen, out, terminal.reporter(), wanted)
    table = comparison_cells(record)
    terminal.show_tables([table])
    parallel.in_main(write_text, page, tables.markdown(table))
    terminal.console().print(f"table {page}\nfigures {out / 'comparison.json'}")
