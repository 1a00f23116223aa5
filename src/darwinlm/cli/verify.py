"""`darwinlm verify`: compare a run's folder with its records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import terminal
from darwinlm.cli.app import LOOK, command


@command(LOOK, "darwinlm verify runs/half")
def verify(folder: Annotated[Path, typer.Argument(help="Output folder of a run.")]) -> None:
    """Check every file's hash, the chain of the stages, the model's parameters and its budget."""
    from darwinlm.errors import ArtifactError
    from darwinlm.runs.verify import verify_run

    console = terminal.console()
    findings = verify_run(folder)
    for finding in findings:
        console.print(f"{finding.what}: {finding.wrong or 'as recorded'}", soft_wrap=True)
    wrong = [finding for finding in findings if finding.wrong is not None]
    if wrong:
        raise ArtifactError(
            f"{folder}: {len(wrong)} of {len(findings)} checks failed; the first is {wrong[0].what}: {wrong[0].wrong}"
        )
    console.print(f"{folder}: all {len(findings)} checks passed", soft_wrap=True)
