"""`darwinlm evaluate`: benchmark tasks, perplexity, KL to a dense model, and measures of one's own, of any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LOOK, command


@command(
    LOOK,
    "darwinlm evaluate runs/half --suite quick --out quick.json",
    "darwinlm evaluate runs/half --text TEXT --against MODEL",
    "darwinlm evaluate runs/half --chat --against MODEL",
    "darwinlm evaluate runs/half --measure sciq,answers.jsonl,check.py:score",
)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, finished run, hub id or GGUF file.")],
    suite: arguments.Suite = None,
    data_dir: arguments.DataDir = None,
    limit: arguments.Limit = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Text on which to measure perplexity: file, folder or hf:owner/name. Can be repeated.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Original (dense) model to compare with on texts, chats and measures. The default is that of the run.",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Measure KL, agreement and code on new answers of the model of --against.")
    ] = False,
    measure: arguments.Measure = None,
    run_code: arguments.RunCode = False,
    measure_time: arguments.MeasureTime = "1h",
    tokens: Annotated[int, arguments.number("TOKENS", "Number of tokens of each text")] = 16384,
    sequence_length: Annotated[int, arguments.number("TOKENS", "Number of tokens in a sequence", least=2)] = 512,
    batch_size: Annotated[int, arguments.number("SEQUENCES", "Number of sequences in a forward pass")] = 8,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="File to write the results to, as JSON. Rerun the command to resume."
        ),
    ] = None,
    as_json: arguments.Json = False,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "auto",
) -> None:
    """Measure a model: benchmarks (EleutherAI's lm-evaluation-harness), perplexity, and KL to the original model.

    A finished run is compared with its dense model on texts, chats and measures. To measure without this
    comparison, give RUN/model.
    """
    from darwinlm.evaluation.evaluate_model import EvaluationRequest, evaluate_model
    from darwinlm.evaluation.measures.named import MeasureRequest
    from darwinlm.runs.finished import dense_of
    from darwinlm.runtime.errors import DataError

    measures = MeasureRequest(tuple(measure or ()), run_code, measure_time, data_dir, limit) if measure else None
    request = EvaluationRequest(
        model=model,
        suite=suite,
        data_dir=data_dir,
        limit=limit,
        texts=tuple(text or ()),
        against=against or (dense_of(model) if text or chat or measure else None),
        tokens=tokens,
        sequence_length=sequence_length,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        chat=chat,
        measures=measures,
    )
    result = evaluate_model(request, out, None if as_json else terminal.console())
    if as_json:
        terminal.print_json(result.as_json())
    else:
        terminal.show_tables(result.tables())
    failed = [score for score in result.scores if score.error]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(result.scores)} tasks failed, so the table is partial and has no average: "
            + "; ".join(f"{score.title}: {score.error}" for score in failed)
        )
