"""`darwinlm plan`: predicted memory and time of a run, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Unpack

import typer
from rich.console import Console

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import AHEAD, command
from darwinlm.cli.prune import check_options, prune
from darwinlm.steps.budget.kinds import BUDGETS

if TYPE_CHECKING:
    from darwinlm.planning.run_plan import Plan
    from darwinlm.recipe import RecipeOptions


@command(
    AHEAD,
    "darwinlm plan MODEL --keep 50%",
    "darwinlm plan MODEL --keep 75%,50% --preset quick --text TEXT --out runs/sizes",
    "darwinlm plan meta-llama/Llama-2-7b-hf --recipe llama2-7b-2.7b-fast --device h100",
)
@arguments.with_options_of(prune, "Options of prune that make no difference to a plan")
@arguments.with_recipe_options
def plan(
    model: arguments.Model = None,
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
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="LOSS", help="As for prune. The plan includes every size that may be tried."),
    ] = None,
    measure: Annotated[
        list[str] | None, typer.Option("--measure", metavar="NAMES", help="As for prune. Its time isn't planned.")
    ] = None,
    **given: Unpack[RecipeOptions],
) -> None:
    """Predict what each stage of a run takes: work (in tokens that the model reads), time, memory and disk space.

    It takes the options of prune: type the same line with another verb. No weights are read.
    """
    from darwinlm.recipe import load_recipes, options

    recipes = load_recipes(recipe, assignments or (), options(model=model, **given))
    if within is not None:
        sized = [name for name in BUDGETS if given.get(name) is not None]
        check_options(within, [*sized, *(["until"] if until else [])], len(recipes))
    from darwinlm.pipeline import REPORT
    from darwinlm.runs.bound import check_beside, parse_within
    from darwinlm.runs.plan_model import plan as plan_run  # with PyTorch, which takes seconds
    from darwinlm.runs.plan_model import sweep_seconds

    if within is not None:
        check_beside(parse_within(within), measured=bool(measure), timed=recipes[0].time is not None)
    console = terminal.console()

    text = given.get("text")
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
    if predicted.speeds[0] != predicted.speeds[1]:
        console.print(
            "times are a range, because this GPU can't be measured: from its maker's rates to those that are expected",
            soft_wrap=True,
        )
    for note in notes_of(predicted):
        console.print(note, soft_wrap=True)
    if predicted.problem is not None:
        console.print(f"doesn't fit: {predicted.problem}", soft_wrap=True)
