"""`darwinlm plan`: predicted memory and time of a run, without weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer
from rich.console import Console

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import AHEAD, command
from darwinlm.steps.budget.kinds import BudgetArguments

if TYPE_CHECKING:
    from darwinlm.planning.run_plan import Plan

_AS_FOR_PRUNE = "As for prune, so that the same line can be planned. Nothing is written."


@command(
    AHEAD,
    "darwinlm plan MODEL --keep 50%",
    "darwinlm plan MODEL --keep 75%,50% --preset quick --text TEXT --out runs/sizes",
    "darwinlm plan meta-llama/Llama-2-7b-hf --recipe llama2-7b-2.7b-fast --device h100",
)
@arguments.with_budget
def plan(
    model: arguments.Model = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", help=_AS_FOR_PRUNE)] = None,
    vocab: arguments.Vocab = None,
    answers: arguments.Answers = None,
    time: arguments.Time = None,
    preset: arguments.Preset = None,
    ready_for: arguments.For = None,
    layers: arguments.Layers = None,
    text: arguments.Text = None,
    recipe: arguments.RecipeFile = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="A device of this machine, which is measured: auto, cpu or cuda. Or another GPU, whose times are a "
            "range: h100, h200, a100, a100-40gb, l40s, rtx4090, rtx3090, rtx4080 or rtx4060.",
        ),
    ] = "auto",
    processes: Annotated[int, arguments.number("PROCESSES", "Number of torchrun processes")] = 1,
    assignments: arguments.Set = None,
    until: arguments.Until = None,
    track: Annotated[str | None, typer.Option("--track", metavar="TRACKER", help=_AS_FOR_PRUNE)] = None,
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="LOSS", help="As for prune. What each size that it tries takes is planned."),
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", metavar="NAMES", help="As for prune. Its time isn't planned.")
    ] = None,
    run_code: Annotated[bool, typer.Option("--run-code", help=_AS_FOR_PRUNE)] = False,
    measure_time: Annotated[str, typer.Option("--measure-time", metavar="DURATION", help=_AS_FOR_PRUNE)] = "1h",
    data_dir: Annotated[Path | None, typer.Option("--data-dir", metavar="FOLDER", help=_AS_FOR_PRUNE)] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="ITEMS", help=_AS_FOR_PRUNE)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=_AS_FOR_PRUNE)] = False,
    **budget: Unpack[BudgetArguments],
) -> None:
    """Predict what each stage of a run takes: passes of the model, time and memory.

    It takes the options of prune: type the same line with another verb. No weights are read.
    """
    del out, track, overwrite, run_code, measure_time, data_dir, limit
    from darwinlm.recipe import load_recipes, options

    settings = {"vocab": vocab, "time": time, "preset": preset, "ready_for": ready_for, "layers": layers, "text": text}
    settings["answers"] = answers
    recipes = load_recipes(recipe, assignments or (), options(model=model, **budget, **settings))
    from darwinlm.pipeline import REPORT
    from darwinlm.runs.plan_model import plan as plan_run  # with PyTorch, which takes seconds
    from darwinlm.runs.plan_model import sweep_seconds

    console = terminal.console()
    plans = [
        plan_run(recipe=each, device=device, processes=processes, until=until or REPORT, text=text) for each in recipes
    ]
    for number, predicted in enumerate(plans):
        if number:
            console.print()
        _show(console, predicted)
    if within is not None:
        share = f"{recipes[0].budget.bound.label()} %"
        console.print(
            f"\n--within {within} finds the size: this is one at {share}. It tries up to five sizes first, with "
            "searches of three generations",
            soft_wrap=True,
        )
    if measure:
        console.print("the time of --measure isn't in this plan: it reads its items with every size", soft_wrap=True)
    if len(plans) > 1:
        console.print(
            f"\nall sizes: {_range(sweep_seconds(plans))}, because they share the stages before the search",
            soft_wrap=True,
        )


def _range(seconds: tuple[float, float]) -> str:
    """The shortest and the longest time, or the only one."""
    from darwinlm.runtime.amounts import duration

    return " to ".join(dict.fromkeys(map(duration, seconds)))


def _show(console: Console, predicted: Plan) -> None:
    """Print the plan of one size."""
    from darwinlm.runs.plan_model import notes_of
    from darwinlm.runtime import tables
    from darwinlm.runtime.amounts import size

    for line in predicted.lines:
        console.print(line, soft_wrap=True)
    console.print(tables.terminal(predicted.table))
    console.print(
        f"up to {size(predicted.most_memory)} with the search's caches; compute.memory limits both", soft_wrap=True
    )
    if predicted.rates[0] != predicted.rates[1]:
        console.print(
            "times are a range, because this GPU can't be measured: it is assumed to work at 50 % to 2 % of its peak",
            soft_wrap=True,
        )
    for note in notes_of(predicted):
        console.print(note, soft_wrap=True)
    if predicted.problem is not None:
        console.print(f"doesn't fit: {predicted.problem}", soft_wrap=True)
