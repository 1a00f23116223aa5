"""`darwinlm demo`: the embedded model, pruned, described, and asked a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from darwinlm.cli import terminal
from darwinlm.cli.app import SHRINK, OutOption, SetOption, command
from darwinlm.cli.prune import run_recipe

LONG = 3600.0
"""Predicted seconds above which other programs probably distort the measured speed."""


@command(SHRINK, "darwinlm demo", "darwinlm demo --full --out runs/full")
def demo(
    out: OutOption = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="Half of the block parameters, with the default amounts of text.")
    ] = False,
    assignments: SetOption = None,
) -> None:
    """Prune the embedded SmolLM2-135M-Instruct, train it briefly, and let it answer beside the original."""
    from darwinlm.demo import SIZES, demo_recipe
    from darwinlm.search.predict.sizes import predicted_sizes

    recipe = demo_recipe(tuple(assignments or ()), full=full)
    if not (out / "summary.json").exists():
        terminal.say(_expectation(recipe))
    made = run_recipe(recipe, out, "report")
    console = terminal.console()
    sizes = predicted_sizes(made.plan.space, made.database.reader, SIZES)
    if sizes:
        console.print(
            "\nother sizes, predicted from the same database (one shot, before refit and training)", style="bold"
        )
        dense = made.report.budget.dense_block_params
        for size in sizes:
            bar = "#" * round(40 * size.params / dense)
            console.print(
                f"  {size.share:4.0%}  {size.params / 1e6:6.1f} M  {bar:<40}  KL {size.kl:.2f}", highlight=False
            )
    _answers(console, out)
    console.print(
        f"\nnext\n"
        f"  darwinlm chat {out}\n"
        f"  darwinlm prune MODEL --keep 75% --text TEXT --out runs/mine\n"
        f"  darwinlm recover {out} --tokens 1M --out runs/recovered",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _expectation(recipe: Any) -> str:
    """Predicted duration by the plan, with the speed of this processor measured within a second."""
    from darwinlm.compute import settled
    from darwinlm.planning.devices import find_device
    from darwinlm.planning.model import Sizes, described
    from darwinlm.planning.plan import make_plan

    device = find_device("cpu")
    with described(str(recipe.model)) as checkpoint:
        seconds = make_plan(Sizes(checkpoint, settled(recipe, device.kind)), device).seconds
    if seconds > LONG:
        return "other programs use the processor, so this takes longer than the usual eight minutes on two slow cores"
    return f"about {max(1, round(seconds / 60))} min on this processor, if nothing else runs"


def _answers(console: Console, out: Path) -> None:
    """Ask questions through the chat template and print the answers of both models."""
    import torch

    from darwinlm.chat import AnswerSettings, Conversation
    from darwinlm.demo import QUESTIONS
    from darwinlm.evaluation.models import open_model

    settings = AnswerSettings(max_tokens=40, temperature=0)
    for question in QUESTIONS:
        console.print(f"\n{question}", style="bold", markup=False, highlight=False)
        for name, folder in (("dense", out / "stages" / "source"), ("smaller", out / "model")):
            opened = open_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
            answer = " ".join(Conversation(opened, settings).answer(question).split())
            console.print(f"  {name}: {answer}", highlight=False, markup=False, soft_wrap=True)
