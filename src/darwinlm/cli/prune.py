"""`darwinlm prune`: the whole pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer
from rich.console import Console

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import SHRINK, command
from darwinlm.runtime.shell import word
from darwinlm.steps.budget.kinds import BUDGETS

if TYPE_CHECKING:
    from darwinlm.recipe import RecipeOptions
    from darwinlm.report.summary import Summary


@command(
    SHRINK,
    "darwinlm prune HuggingFaceTB/SmolLM2-135M-Instruct --keep 50% --out runs/half",
    "darwinlm prune MODEL --params 2.7B --text TEXT --out runs/small",
    "darwinlm prune MODEL --keep 75%,50%,35% --text TEXT --out runs/sizes",
    "darwinlm prune MODEL --params 80M --vocab 50% --text TEXT --out runs/vocab",
    "darwinlm prune MODEL --file 95MB --for q4_k_m --text TEXT --out runs/file",
    "darwinlm prune MODEL --speedup 2x --time 30m --text TEXT --out runs/fast",
    "darwinlm prune MODEL --within 2% --measure sciq,answers.jsonl --text TEXT --out runs/safe",
    "darwinlm prune RERANKER --keep 50% --layers first --text pairs.jsonl --out runs/first",
)
@arguments.with_recipe_options
def prune(
    model: arguments.Model = None,
    out: arguments.Out = Path("runs/pruned"),
    recipe: arguments.RecipeFile = None,
    assignments: arguments.Set = None,
    until: arguments.Until = None,
    track: arguments.Track = None,
    within: arguments.Within = None,
    measure: arguments.Measure = None,
    run_code: arguments.RunCode = False,
    measure_time: arguments.MeasureTime = "1h",
    data_dir: arguments.DataDir = None,
    limit: arguments.Limit = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished run of another model or size in the output folder.")
    ] = False,
    **given: Unpack[RecipeOptions],
) -> None:
    """Prune a model to a budget, to several (75%,50%), or as far as its quality allows (--within 2%).

    Rerun the same command to resume; finished stages are reused.
    """
    from darwinlm.recipe import load_recipes, options
    from darwinlm.runtime.errors import RecipeError

    recipes = load_recipes(recipe, assignments or (), options(model=model, **given))
    given_alone = {"--run-code": run_code, "--data-dir": data_dir is not None, "--limit": limit is not None}
    if not measure and (unused := [name for name, is_given in given_alone.items() if is_given]):
        raise RecipeError(f"{unused[0]} belongs to --measure, which isn't given: name a measure, or leave it out")
    check_options(within, [name for name in BUDGETS if given.get(name) is not None], len(recipes))
    from darwinlm.evaluation.measures.named import MeasureRequest
    from darwinlm.pipeline import REPORT  # with PyTorch, which takes seconds
    from darwinlm.runs.pruning import prune as run
    from darwinlm.runs.sweep import prune_sweep

    last_stage = until or REPORT
    measures = MeasureRequest(tuple(measure), run_code, measure_time, data_dir, limit) if measure else None
    console, reporter = terminal.console(), terminal.reporter()
    if len(recipes) > 1:
        sweep = prune_sweep(
            recipes,
            out,
            until=last_stage,
            overwrite=overwrite,
            track=track,
            reporter=reporter,
            begun=terminal.BEGUN,
            measures=measures,
        )
    else:
        result = run(
            recipe=recipes[0],
            out=out,
            until=last_stage,
            overwrite=overwrite,
            track=track,
            reporter=reporter,
            begun=terminal.BEGUN,
            measures=measures,
            within=within,
        )
    if last_stage != REPORT:
        console.print(f"stopped by --until {until}; the results are in {out}", soft_wrap=True)
    elif len(recipes) > 1:
        _show_sweep(console, sweep, out)
    else:
        show_result(console, result.summary, out)


def check_options(within: str | None, sized: Sequence[str], sizes: int) -> None:
    """Refuse a size beside a bound in quality. Raises RecipeError."""
    from darwinlm.runtime.errors import RecipeError

    if within is not None and (sized or sizes > 1):
        given = f"--{sized[0]}" if sized else "the recipe's sizes"
        raise RecipeError(f"--within finds the size itself, and runs to its report: leave {given} out")


def _show_sweep(console: Console, sweep: Mapping[str, Summary], out: Path) -> None:
    """Print the result of a sweep."""
    from darwinlm.report.comparison import sweep_table
    from darwinlm.runs.sweep import PAGE
    from darwinlm.runtime import tables

    console.print("size against loss")
    console.print(tables.terminal(sweep_table(sweep)))
    console.print(f"models  {out}/*/model\npage    {out / PAGE}", soft_wrap=True)
    largest = word(out / next(iter(sweep)))
    console.print(f"\ndarwinlm show {largest}    show all figures of a size, and next steps", soft_wrap=True)


def show_result(console: Console, summary: Summary, out: Path) -> None:
    """Print what was gained and lost in three lines, and where the rest is."""
    from darwinlm.report import wording

    quoted = word(out)
    lines = wording.told(summary)
    if summary.curve is not None:
        lines += summary.curve.lines()
    if summary.time is not None:
        lines.append(("time", wording.time_limit(summary.time)))
    lines += [("page", str(out / "report.html")), ("model", str(out / "model"))]
    console.print("\n" + "\n".join(f"{name:<6} {words}" for name, words in lines), soft_wrap=True)
    console.print(
        f"\ndarwinlm show {quoted}    show all figures, what is kept of every block, and next steps\n"
        + ("" if summary.export.gives != "language" else f"darwinlm chat {quoted}    talk to the smaller model"),
        soft_wrap=True,
    )
