"""`darwinlm export`: a finished model as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import USE, command
from darwinlm.runtime import tables
from darwinlm.runtime.amounts import size

if TYPE_CHECKING:
    from darwinlm.formats.logits_check import ExportReport


@command(
    USE,
    "darwinlm export runs/half --quant q8_0 --out half.gguf",
    "darwinlm export runs/half --quant q4_k_m --out half-q4.gguf",
)
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder, finished run, hub id or GGUF file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="File to write.")],
    quant: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="Type of the weights: f32, f16, bf16, q8_0, q4_0, q2_k, q3_k_m, q4_k_s, q4_k_m, q5_k_m or q6_k.",
        ),
    ] = "f16",
    tokenizer_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Copy the tokenizer from this GGUF file.")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Don't check the file. Then llama.cpp is only needed for q2_k to q6_k.")
    ] = False,
    overwrite: arguments.Overwrite = False,
) -> None:
    """Write a model for llama.cpp (GGUF), and check that the file gives the same output."""
    from darwinlm.runs.exporting import export_model

    report = export_model(
        model,
        out,
        quantisation=quant,
        tokenizer_from=tokenizer_from,
        unchecked=unchecked,
        overwrite=overwrite,
        say=terminal.say,
    )
    show_report(terminal.console(), report)


def show_report(console: Console, report: ExportReport) -> None:
    """Print comparisons, differences in shape, and the path."""
    rows = [
        (row.left, row.right, str(row.tokens), f"{row.relative:.1e}", f"{row.tolerance:.0e}", f"{row.same_top:.1%}")
        for row in report.comparisons
    ]
    if rows:
        first = report.comparisons[0]
        headings = ("compared", "with", first.unit, "relative difference", "allowed", first.same)
        console.print(tables.terminal(tables.Table(headings, rows)))
    for note in report.notes:
        console.print(f"- {note}", soft_wrap=True)
    console.print(f"{report.path}: {size(report.bytes)} written")
