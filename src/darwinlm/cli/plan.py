"""`darwinlm plan`: predicted memory and time of a run, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import AHEAD, command
from darwinlm.steps.budget.kinds import BudgetArguments

if TYPE_CHECKING:
    from darwinlm.planning.run_plan import Row


@command(
    AHEAD,
    "darwinlm plan MODEL --keep 50%",
    "darwinlm plan meta-llama/Llama-2-7b-hf --recipe llama2-7b-2.7b-fast --device h100",
)
@arguments.with_budget
def plan(
    model: arguments.Model = None,
    recipe: arguments.RecipeFile = None,
    ready_for: arguments.For = None,
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
    **budget: Unpack[BudgetArguments],
) -> None:
    """Predict what each stage of a run takes: passes of the model, time and memory. No weights are read."""
    from darwinlm.runs.plan_model import notes_of
    from darwinlm.runs.plan_model import plan as plan_run
    from darwinlm.runtime import tables  # with PyTorch, which takes seconds
    from darwinlm.runtime.amounts import count, duration, size

    console = terminal.console()
    predicted = plan_run(
        model,
        **budget,
        device=device,
        processes=processes,
        ready_for=ready_for,
        recipe=recipe,
        assignments=assignments or (),
    )
    sizes = predicted.sizes
    smaller = count(sizes.kept_blocks[1] + sizes.outside)
    console.print(
        f"{sizes.checkpoint.source}: {count(sizes.params)} parameters → at most {smaller}; a pass of one token takes "
        f"{sizes.operations(1, heads=1):.2e} operations",
        soft_wrap=True,
    )
    console.print(
        f"{processes} x {predicted.device}: {size(predicted.memory)} of memory for each process", soft_wrap=True
    )

    def times(*rows: Row) -> str:
        return " to ".join(dict.fromkeys(map(duration, predicted.seconds(*rows))))

    cells = [(row.step, f"{predicted.passes(row):,.0f}", times(row), size(row.cost.bytes)) for row in predicted.rows]
    total = ("all", f"{predicted.passes():,.0f}", times(), size(predicted.peak.cost.bytes))
    console.print(tables.terminal(tables.Table(("stage", "passes", "time", "memory"), [*cells, total])))
    most_memory = size(max(row.cost.bytes + row.cost.caches for row in predicted.rows))
    console.print(f"up to {most_memory} with the search's caches; compute.memory limits both", soft_wrap=True)
    if predicted.rates[0] != predicted.rates[1]:
        console.print(
            "times are a range, because this GPU can't be measured: it is assumed to work at 50 % to 2 % of its peak",
            soft_wrap=True,
        )
    for note in notes_of(predicted):
        console.print(note, soft_wrap=True)
    if predicted.problem is not None:
        console.print(f"doesn't fit: {predicted.problem}", soft_wrap=True)
