"""`darwinlm bench`: how fast a model is, against another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from darwinlm.cli.app import RemoteCode, app

if TYPE_CHECKING:
    from darwinlm.bench import SpeedReport, Spread


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="Folder, finished run, hub id or GGUF file.")],
    against: Annotated[str | None, typer.Option("--against", help="Another one, measured in turn with it.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="torch, llama.cpp or vllm.", show_default="by the model")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 512,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens decoded after the first.")] = 64,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Rounds after the warm-up.")] = 5,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Processor threads.")] = 1,
    dtype: Annotated[str | None, typer.Option("--dtype", help="In torch and vllm: bfloat16, float16, float32.")] = None,
    quant: Annotated[str | None, typer.Option("--quant", help="In llama.cpp: convert to this type first.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    allow_remote_code: RemoteCode = False,
) -> None:
    """Measure prompt and decode tokens per second, time to the first token, peak memory and file size."""
    from darwinlm.artifact import write_json
    from darwinlm.bench import run_bench

    console = Console()
    found = run_bench(
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
        say=lambda message: console.print(message, highlight=False, markup=False),
    )
    _show(console, found)
    if json_file is not None:
        write_json(json_file, found.as_dict())


def _show(console: Console, found: SpeedReport) -> None:
    settings = found.settings
    threads = f"{settings['threads']} thread" + "s" * (settings["threads"] > 1)
    title = f"{found.engine}, {threads}, {settings['runs']} runs: median (lowest to highest)"
    table = Table("model", "file MB", "memory MB", "prompt tokens/s", "first token ms", "decode tokens/s", title=title)
    for row in found.models:
        sizes = (f"{row.file_bytes / 1e6:.1f}", f"{row.peak_memory / 1e6:.0f}")
        table.add_row(row.name, *sizes, *(_cell(spread) for spread in (row.prompt, row.first_token, row.decode)))
    if found.ratios:
        left, right = found.models
        sizes = (f"x{left.file_bytes / right.file_bytes:.2f}", f"x{left.peak_memory / right.peak_memory:.2f}")
        speeds = (f"x{_cell(found.ratios[name], 2)}" for name in ("prompt", "first_token", "decode"))
        table.add_row("against it", *sizes, *speeds)
    console.print(table)


def _cell(spread: Spread, digits: int = 1) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"
