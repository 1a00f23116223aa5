"""`python -m lab tradeoff`: prune, quantise, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from darwinlm.cli import arguments, terminal
from lab.app import command


@command("python -m lab tradeoff MODEL --keep 85%,70%,50% --text TEXT --held-out OTHER --out runs/tradeoff")
@arguments.with_budget
def tradeoff(
    model: arguments.Model = None,
    quant: Annotated[
        str, typer.Option("--quant", metavar="TYPES", help="Types of the files, with commas.")
    ] = "f16,q8_0,q6_k,q4_k_m,q3_k_m,q2_k",
    held_out: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Text for the loss; take another source than that of --text.")
    ] = None,
    out: arguments.Out = Path("runs/tradeoff"),
    text: arguments.Text = None,
    ready_for: arguments.For = "gguf",
    layers: arguments.Layers = None,
    tokens: Annotated[int, arguments.number("TOKENS", "Tokens for the loss")] = 8192,
    prompt_tokens: Annotated[int, arguments.number("TOKENS", "Length of the timed prompt")] = 256,
    new_tokens: Annotated[int, arguments.number("TOKENS", "Timed tokens after the first")] = 32,
    runs: Annotated[int, arguments.number("ROUNDS", "Timed rounds over all files")] = 5,
    threads: Annotated[int, arguments.number("THREADS", "CPU threads")] = 1,
    recipe: arguments.RecipeFile = None,
    assignments: arguments.Set = None,
    **budget: Any,
) -> None:
    """Quantise a model and smaller ones (75%,50%), and compare loss, size and speed of the files in llama.cpp."""
    from darwinlm.recipe import load_recipes, options
    from darwinlm.runtime.errors import RecipeError
    from lab.tradeoff.measure import Timed, measure_tradeoff
    from lab.tradeoff.table import tradeoff_table

    if held_out is None:
        raise RecipeError("name the text for the loss with --held-out, from another source than that of --text")
    others = {"model": model, **budget, "text": text, "ready_for": ready_for, "layers": layers}
    recipes = load_recipes(recipe, assignments or (), options(**others))
    found = measure_tradeoff(
        recipes,
        [name.strip().lower() for name in quant.split(",")],
        held_out,
        out,
        tokens=tokens,
        timed=Timed(prompt_tokens, new_tokens, runs, threads),
        reporter=terminal.reporter(),
    )
    terminal.show_tables([tradeoff_table(found)])
    terminal.console().print(f"table {out / 'tradeoff.md'}\nfigures {out / 'tradeoff.json'}")
