"""`darwinlm plan`: predicted memory, disk and time of a run, without weights."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LEARN, command


@command(LEARN, "darwinlm plan meta-llama/Llama-2-7b-hf --recipe llama2-7b-2.7b --device h100")
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
            help="cpu or cuda of this machine, which is measured, or a card: h100, h200, a100, a100-40gb, l40s, "
            "rtx4090, rtx3090, rtx4080, rtx4060. A card's time is a floor, at its peak.",
        ),
    ] = "cpu",
    processes: Annotated[int, arguments.number("PROCESSES", "Number of torchrun processes")] = 1,
    ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of a machine for all processes, such as 256GB.")
    ] = None,
    disk: Annotated[str | None, typer.Option(metavar="SIZE", help="Free space for the output folder: 1TB.")] = None,
    out: arguments.OutFile = None,
    as_json: arguments.Json = False,
    assignments: arguments.Set = None,
    allow_remote_code: arguments.RemoteCode = False,
    **budget: Any,
) -> None:
    """Estimate what a run needs before it starts: memory, disk and time of every stage."""
    memory, space = read_bytes("--ram", ram), read_bytes("--disk", disk)
    from darwinlm.planning.plan import cells, headings
    from darwinlm.report.wording import count
    from darwinlm.runs.plan import plan as make
    from darwinlm.runtime import tables  # with PyTorch, which takes seconds
    from darwinlm.runtime.amounts import size
    from darwinlm.runtime.artifact import write_json
    from darwinlm.runtime.lock import hold_target
    from darwinlm.runtime.places import check_output

    console = terminal.console()
    if out is not None:
        check_output(out, "--out", [model])
    plan_of_run = make(
        model,
        **budget,
        device=device,
        processes=processes,
        ram=memory,
        disk=space,
        ready_for=ready_for,
        recipe=recipe,
        assignments=assignments or (),
        allow_remote_code=allow_remote_code,
    )
    card = plan_of_run.device
    sizes = plan_of_run.sizes
    if out is not None:
        check_output(out, "--out", [sizes.checkpoint.source])
        with hold_target(out):
            write_json(out, plan_of_run.as_json())
    if as_json:
        terminal.print_json(plan_of_run.as_json())
        return
    least, most = (count(kept + sizes.outside) for kept in sizes.kept_blocks)
    console.print(
        f"{sizes.checkpoint.source}: {count(sizes.params)} parameters → "
        f"{most if least == most else f'{least} to {most}'}, "
        f"at most {sizes.kept_blocks[1] / sizes.blocks:.2%} of the {count(sizes.blocks)} in the blocks\n"
        f"{f'{processes} x ' if processes > 1 else ''}{card.name}: {size(card.memory)} ({card.source})",
        soft_wrap=True,
    )
    console.print(tables.terminal(headings(plan_of_run), cells(plan_of_run)))
    for note in plan_of_run.notes:
        console.print(note, soft_wrap=True)
    for problem in plan_of_run.problems:
        console.print(f"doesn't fit: {problem}", soft_wrap=True)


def read_bytes(option: str, text: str | None) -> float | None:
    """A size such as 256GB. Raises RecipeError."""
    from darwinlm.recipe.quantities import BYTES, parse_quantity
    from darwinlm.runtime.errors import RecipeError

    if text is None:
        return None
    try:
        return float(parse_quantity(text, BYTES, "256GB"))
    except ValueError as error:
        raise RecipeError(f"{option} {text}: {error}") from error
