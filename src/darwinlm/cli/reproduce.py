"""`darwinlm reproduce`: make a published model again, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LEARN, command


@command(LEARN, "darwinlm reproduce OWNER/NAME --out runs/again")
def reproduce(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder of a run, published model, or its hub id.")],
    out: arguments.Out = Path("runs/reproduced"),
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Where the original model is here.")] = None,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="Where the text is here.")] = None,
) -> None:
    """Make a model again from its recorded recipe, and compare each file with the recorded hash."""
    from darwinlm.runs.reproduce import reproduce as again
    from darwinlm.runtime.errors import ArtifactError

    console = terminal.console()
    findings = again(source, out, model=model, text=text, reporter=terminal.reporter())
    for finding in findings:
        console.print(f"{finding.what}: {'the same' if finding.wrong is None else 'differs'}", soft_wrap=True)
    differing = [finding.what for finding in findings if finding.wrong is not None]
    if differing:
        raise ArtifactError(
            f"{out / 'model'} differs from {source} in {', '.join(differing)}: compare versions, threads and processor "
            "with the record; of several sizes of one command, only the largest can be made alone"
        )
