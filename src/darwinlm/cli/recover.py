"""`darwinlm recover`: train a smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from darwinlm.cli.app import OutOption, RecipeOption, SetOption, TextOption, app


@app.command()
def recover(
    model: Annotated[Path, typer.Argument(help="Folder of a smaller model, or of a run.", show_default=False)],
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="The dense model: hub id, folder or GGUF file.", show_default=False)
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Tokens to train on: 300M, 10B.", show_default=False)
    ] = None,
    out: OutOption = Path("runs/recovered"),
    text: TextOption = None,
    recipe: RecipeOption = None,
    assignments: SetOption = None,
) -> None:
    """Train a smaller model by distillation from the dense one; goes on from its last checkpoint after a kill."""
    from darwinlm import parallel
    from darwinlm.console import Reporter
    from darwinlm.report.table import comparison_table
    from darwinlm.runs.recovery import recover as run_recovery

    console = Console()
    summary = run_recovery(
        model,
        out,
        teacher=teacher,
        tokens=tokens,
        text=text,
        recipe=recipe,
        assignments=tuple(assignments or ()),
        reporter=Reporter(console),
    )
    if not parallel.is_main():
        return
    assert summary.recovery is not None
    console.print(comparison_table(summary))
    console.print(
        f"{summary.recovery.tokens:,} tokens in {summary.recovery.steps:,} steps\nmodel   {out / 'model'}\n"
        f"report  {out / 'report.html'}\nsummary {out / 'summary.json'}",
        highlight=False,
    )
