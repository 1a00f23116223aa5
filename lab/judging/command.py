"""`python -m lab judging`: does the user's measure choose better among finalists than the KL?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from darwinlm.cli import arguments, terminal
from lab.app import command


@command("python -m lab judging MODEL --keep 60%,50% --text TEXT --data-dir DATA --out runs/judging")
@arguments.with_budget
def judging(
    model: arguments.Model = None,
    items: Annotated[
        str, typer.Option(metavar="TASK=ITEMS", help="Tasks and numbers of items, with commas.")
    ] = "sciq=300,piqa=250,arc_easy=350",
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the tasks' files.")] = None,
    out: arguments.Out = Path("runs/judging"),
    text: arguments.Text = None,
    recipe: arguments.RecipeFile = None,
    assignments: arguments.Set = None,
    **budget: Any,
) -> None:
    """Make different models of a size, and compare the choice by KL with the choice by half of a task's items."""
    from darwinlm.recipe import load_recipes, options
    from darwinlm.runtime.errors import RecipeError
    from lab.judging.judged import judge_finalists
    from lab.judging.packed_choices import TASKS

    counts = {name: count for name, _, count in (part.partition("=") for part in items.split(","))}
    if data_dir is None or not counts.keys() <= TASKS.keys() or not all(map(str.isdecimal, counts.values())):
        raise RecipeError(f"give --data-dir, and --items such as sciq=200; tasks are {', '.join(TASKS)}")
    recipes = load_recipes(recipe, assignments or (), options(model=model, **budget, text=text))
    numbers = {name: int(count) for name, count in counts.items()}
    terminal.show_tables([judge_finalists(recipes, numbers, data_dir, out, terminal.reporter())])
