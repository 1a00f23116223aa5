"""`darwinlm bench`: speed of a model, alone or compared with another one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LOOK, command
from darwinlm.runtime.amounts import size

if TYPE_CHECKING:
    from darwinlm.runs.bench import SpeedReport, Spread

HEADINGS = ("model", "file", "memory", "prompt tokens/s", "first token ms", "decode tokens/s")


@command(
    LOOK,
    "darwinlm bench runs/half --against MODEL",
    "darwinlm bench runs/half --against MODEL --engine llama.cpp --quant q8_0",
)
def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, finished run, hub id or GGUF file.")],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Second model, such as the original one; the two are timed in turn."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE", help="Such as torch, llama.cpp or vllm. Without it, llama.cpp for GGUF files, else torch."
        ),
    ] = None,
    prompt_tokens: Annotated[int, arguments.number("TOKENS", "Length of the prompt")] = 512,
    new_tokens: Annotated[int, arguments.number("TOKENS", "Tokens to generate after the first")] = 64,
    runs: Annotated[int, arguments.number("ROUNDS", "Measured rounds after the warm-up")] = 5,
    threads: arguments.Threads = 1,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="torch and vllm: bfloat16, float16 or float32.")
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="llama.cpp: convert a folder to this type first: f16, q8_0, q4_k_m ..."),
    ] = None,
    out: arguments.OutFile = None,
    as_json: arguments.Json = False,
    allow_remote_code: arguments.RemoteCode = False,
) -> None:
    """Measure speed: tokens per second, time to the first token, peak memory and file size."""
    from darwinlm.runs.bench import run_bench
    from darwinlm.runtime.artifact import write_json
    from darwinlm.runtime.lock import hold_target
    from darwinlm.runtime.places import check_output

    if out is not None:
        check_output(out, "--out", (model, against))
    with hold_target(out) if out is not None else nullcontext():
        report = run_bench(
            model,
            against,
            engine=engine,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            runs=runs,
            threads=threads,
            dtype=dtype,
            quantisation=quant,
            allow_remote_code=allow_remote_code,
            say=(lambda message: None) if as_json else terminal.say,
        )
        if as_json:
            terminal.print_json(asdict(report))
        else:
            _show(report)
        if out is not None:
            write_json(out, asdict(report))


def _show(report: SpeedReport) -> None:
    settings = report.settings
    threads = f"{settings['threads']} thread" + "s" * (settings["threads"] > 1)
    terminal.console().print(f"{report.engine}, {threads}, {settings['runs']} runs: median (lowest to highest)")
    rows, remarks = [], []
    for row in report.models:
        sizes = (size(row.file_bytes), size(row.peak_memory))
        rows.append((row.name, *sizes, *(_cell(spread) for spread in (row.prompt, row.first_token, row.decode))))
    if report.ratios:
        left, right = report.models
        sizes = (f"×{left.file_bytes / right.file_bytes:.2f}", f"×{left.peak_memory / right.peak_memory:.2f}")
        speeds = (f"×{_cell(report.ratios[name], 2)}" for name in ("prompt", "first_token", "decode"))
        rows.append(("ratio", *sizes, *speeds))
        remarks.append("ratio: first model to second, and second to first for the first token: above ×1 is faster")
    terminal.show_tables([(HEADINGS, rows, remarks)], None)


def _cell(spread: Spread, digits: int = 1) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"
