"""`darwinlm recover`: train a smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import SHRINK, command
from darwinlm.cli.prune import show_result


@command(
    SHRINK,
    "darwinlm recover runs/half --tokens 1M --text TEXT --out runs/recovered",
    "darwinlm recover SMALL --teacher MODEL --tokens 10B --text hf:HuggingFaceFW/fineweb-edu --out runs/recovered",
)
def recover(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a pruned model, or of a finished run.")],
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The original model: hub id, folder or GGUF file. The default is that of the run."
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="COUNT", help="Tokens to train on: 1M, 300000 or 10B. Required unless a recipe gives them."
        ),
    ] = None,
    out: arguments.Out = Path("runs/recovered"),
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Training text: file, folder or hf:owner/name. Can be repeated. The default is the text of the run, "
            "without the documents that the run used for other purposes.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="YAML file, or the name of a bundled recipe for training: recover-documents or recover-chats.",
        ),
    ] = None,
    assignments: arguments.Set = None,
    track: arguments.Track = None,
) -> None:
    """Train a pruned model, by default by distillation from the original model.

    Rerun the same command to resume from the last checkpoint.
    """
    from darwinlm.runs.recovery import recover as run_recovery

    result = run_recovery(
        model,
        out,
        teacher=teacher,
        tokens=tokens,
        text=text,
        recipe=recipe,
        assignments=tuple(assignments or ()),
        track=track,
        reporter=terminal.reporter(),
    )
    show_result(terminal.console(), result.summary, out)
