"""`darwinlm demo`: the embedded model, pruned, described, and asked a question."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import SHRINK, command
from darwinlm.cli.prune import run_recipe


@command(SHRINK, "darwinlm demo", "darwinlm demo --full --out runs/full")
def demo(
    out: arguments.Out = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="Half of the block parameters, with the default amounts of text.")
    ] = False,
    assignments: arguments.Set = None,
) -> None:
    """Prune SmolLM2-135M-Instruct (from PyPI), train it briefly, and compare its answers with the original's."""
    from darwinlm.runs.demo import demo_recipe

    recipe = demo_recipe(tuple(assignments or ()), full=full)
    run = run_recipe(recipe, out)
    console = terminal.console()
    _sizes(console, run, recipe.budget.keep)
    _answers(console, run)
    quoted = shlex.quote(str(out))
    console.print(
        f"\nnext\n"
        f"  darwinlm chat {quoted}\n"
        f"  darwinlm prune MODEL --keep 75% --text TEXT --out runs/mine\n"
        f"  darwinlm recover {quoted} --tokens 1M --out runs/recovered",
        soft_wrap=True,
    )


def _sizes(console: Console, run: Any, kept: float | None) -> None:
    """Print losses of several sizes, predicted by the database and scaled to the measured one of the present size."""
    from darwinlm.runs.demo import SIZES
    from darwinlm.search.predict.module_losses import predicted_sizes
    from darwinlm.stages.database import DATABASE
    from darwinlm.stages.plan import PLAN
    from darwinlm.stages.report import REPORT

    shares = sorted({*SIZES, *([kept] if kept else [])}, reverse=True)
    sizes = predicted_sizes(run[PLAN].space, run[DATABASE].reader, shares)
    if not sizes:
        return
    console.print("\nKL of other sizes, estimated from the database and scaled to the measured one", style="bold")
    measured = run[REPORT].models["stitched"].kl
    scale = next((measured / size.kl for size in sizes if size.share == kept and size.kl), 1.0)
    most = max(size.kl for size in sizes)
    for size in sizes:
        bar = "#" * max(1, round(30 * size.kl / most))
        here = "measured" if size.share == kept else "about"
        console.print(f"  {size.share:4.0%}  {size.params / 1e6:6.1f} M  {here:8} {scale * size.kl:.2f}  {bar}")


def _answers(console: Console, run: Any) -> None:
    """Ask questions through the chat template and print the answers of both models."""
    from darwinlm.evaluation.chat import AnswerSettings, Conversation
    from darwinlm.models.opened import open_model
    from darwinlm.runs.demo import QUESTIONS
    from darwinlm.stages.export import EXPORT
    from darwinlm.stages.model import SOURCE

    settings = AnswerSettings(max_tokens=40, temperature=0)
    folders = {"dense": run[SOURCE].folder, "smaller": run[EXPORT].folder}
    models = {name: open_model(str(folder), dtype="float32") for name, folder in folders.items()}
    for question in QUESTIONS:
        console.print(f"\n{question}", style="bold", markup=False)
        for name, opened in models.items():
            answer = " ".join(Conversation(opened, settings).answer(question).split())
            cut = "" if answer.endswith((".", "!", "?")) else " …"
            console.print(f"  {name}: {answer}{cut}", markup=False, soft_wrap=True)
