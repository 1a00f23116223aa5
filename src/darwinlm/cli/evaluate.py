"""`darwinlm evaluate`: benchmark tasks, perplexity, and KL to a dense model, of any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from darwinlm.cli.app import RemoteCode, app
from darwinlm.cli.tables import show_tables

SuiteOption = Annotated[
    str | None,
    typer.Option("--suite", help="paper, quick, or tasks: piqa,arc_challenge:25 (the number is of shots)."),
]
DataOption = Annotated[Path | None, typer.Option("--data-dir", help="Local files TASK/SPLIT.jsonl[.gz]; no hub.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Items of each task.")]


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id, folder, output folder of a run, or GGUF file.")],
    suite: SuiteOption = None,
    data_dir: DataOption = None,
    limit: LimitOption = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text to measure perplexity on; repeatable.")] = None,
    against: Annotated[str | None, typer.Option("--against", help="Dense model for KL on the text.")] = None,
    looking_back: Annotated[
        bool, typer.Option("--looking-back", help="Copying of random words; with --text it's always measured.")
    ] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Of each text.")] = 16384,
    sequence_length: Annotated[int, typer.Option("--sequence-length", min=2, help="Tokens in one block.")] = 512,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Sequences in one forward pass.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file; the same one again resumes.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Markdown file.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda ...")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")] = "auto",
    allow_remote_code: RemoteCode = False,
) -> None:
    """Measure a model: a benchmark suite through lm-evaluation-harness, perplexity, KL to the dense model."""
    from darwinlm.evaluation.evaluate import EvaluationRequest, evaluate_model

    request = EvaluationRequest(
        model=model,
        suite=suite,
        data_dir=data_dir,
        limit=limit,
        texts=tuple(text or ()),
        against=against,
        tokens=tokens,
        sequence_length=sequence_length,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        allow_remote_code=allow_remote_code,
        looking_back=looking_back,
    )
    console = Console()
    found = evaluate_model(request, out, console)
    show_tables(found.tables(), console, markdown)
    _fail_if_incomplete(found)


def _fail_if_incomplete(found: Any) -> None:
    from darwinlm.errors import DataError

    failed = [score for score in found.scores if score.error]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(found.scores)} tasks failed, so the table is partial and has no average: "
            + "; ".join(f"{score.title}: {score.error}" for score in failed)
        )
