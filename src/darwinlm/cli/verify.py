"""`darwinlm verify`: compare a run or an export with its records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import terminal
from darwinlm.cli.app import LOOK, command


@command(LOOK, "darwinlm verify runs/half", "darwinlm verify half.gguf")
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Output folder of a run, folder of an export, or exported GGUF file.")
    ],
) -> None:
    """Check that files are as written; of a run also the chain of its stages, the model's parameters and its budget."""
    from darwinlm.runs import verify as verification
    from darwinlm.runtime.errors import ArtifactError

    console = terminal.console()
    findings = verification.verify(path)
    for finding in findings:
        console.print(f"{finding.what}: {finding.wrong or 'as recorded'}", soft_wrap=True)
    wrong = [finding for finding in findings if finding.wrong is not None]
    if wrong:
        raise ArtifactError(
            f"{path}: {len(wrong)} of {len(findings)} checks failed; the first is {wrong[0].what}: {wrong[0].wrong}"
        )
    console.print(f"{path}: all checks passed ({len(findings)})", soft_wrap=True)
