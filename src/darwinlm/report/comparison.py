"""Models compared, and how far they read their context: the same rows for page, terminal and model card."""

from __future__ import annotations

from rich.table import Table

from darwinlm.report import wording
from darwinlm.report.summary import Summary
from darwinlm.runtime import tables
from darwinlm.steps.chats.answers import chat_tables

COLUMNS = (
    *("model", "params", "block params", "weights", "perplexity", "KL, nats per token"),
    *("prompt tokens/s", "decode tokens/s"),
)
"""Headings of the cells of a row."""


def comparison_rows(summary: Summary) -> list[tuple[str, ...]]:
    """A row of cells under `COLUMNS` for each measured model, the dense one first and the saved one last.

    A figure that wasn't measured is a dash; shares and factors are of the dense model.
    """
    rows: list[tuple[str, ...]] = []
    for key, model in summary.measured():
        dense = None if key == "dense" else summary.dense
        blocks = wording.count(model.block_params)
        if dense is not None:
            blocks += f" ({wording.percent(model.block_params, dense.block_params)})"
        rows.append(
            (
                wording.model_name(key, summary),
                wording.count(model.params),
                blocks,
                wording.size(model.bytes),
                wording.perplexity(model.perplexity),
                wording.kl(model.kl),
                _speed(model.tokens_per_second, dense.tokens_per_second if dense else None),
                _speed(model.decode_tokens_per_second, dense.decode_tokens_per_second if dense else None),
            )
        )
    return rows


def comparison_table(summary: Summary) -> Table:
    """Make the comparison for the terminal, with the model that is saved in bold."""
    rows = comparison_rows(summary)
    return tables.terminal(COLUMNS, rows, bold=len(rows) - 1)


def _speed(rate: float | None, dense: float | None) -> str:
    times = wording.factor(rate, dense)
    return wording.rate(rate) + (f" (×{times})" if times else "")


def file_rows(summary: Summary) -> tables.Table | None:
    """Sizes of GGUF files of the dense and of the saved model; None where llama.cpp can't run the saved one."""
    if (file := summary.file) is None:
        return None
    came = () if file.bytes is None else (f"The file that came in has {wording.size(file.bytes)}.",)
    names = ("dense", wording.model_name(summary.saved_key, summary))
    rows = [
        (name, *(wording.size(sizes[kind]) for kind in file.predicted))
        for name, sizes in zip(names, (file.dense, file.predicted), strict=True)
    ]
    return ("GGUF file", *file.predicted), rows, ["Sizes are predicted.", *came]


COPIED = "Copied: the model is given words or text twice; the share of the repeated tokens that it predicts."
"""What the columns mean."""


def looking_back_rows(summary: Summary) -> tables.Table | None:
    """Headings, a row of cells for each model, and what wasn't measured; None where no figures are of all of them."""
    headings: tuple[str, ...] = ()
    rows = []
    for key, model in summary.measured():
        figures = model.looking_back
        if figures is None:
            return None
        headings = ("model", *(f"copied, {score.name}" for score in figures.copying))
        copied = (f"{100 * score.accuracy:.0f} %" for score in figures.copying)
        rows.append((wording.model_name(key, summary), *copied))
    remarks = summary.dense.looking_back.remarks if summary.dense.looking_back else ()
    return headings, rows, [f"{each[:1].upper()}{each[1:]}." for each in remarks]


def chat_rows(summary: Summary) -> list[tables.Table]:
    """Tables of what the models do as chat models; none where that wasn't measured."""
    found = summary.chats
    return [] if found is None else list(chat_tables(found, lambda key: wording.model_name(key, summary)))  # type: ignore[arg-type]
