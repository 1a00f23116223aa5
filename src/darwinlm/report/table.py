"""The comparison of the models: the same rows for the page, the terminal and the model card."""

from __future__ import annotations

import re

from rich.table import Table

from darwinlm import tables
from darwinlm.report import wording
from darwinlm.report.summary import Summary

COLUMNS = (
    "model",
    "parameters",
    "block parameters",
    "MB",
    "perplexity",
    "KL (nats/token)",
    "prompt tokens/s",
    "decode tokens/s",
)
"""Headings of the cells of a row."""

TERMINAL_COLUMNS = (
    "model",
    "params",
    "block\nparams",
    "MB",
    "perplexity",
    "KL, nats\nper token",
    "prompt\ntokens/s",
    "decode\ntokens/s",
)
"""The same, narrow enough for a row of figures to fit into 104 characters."""


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
                wording.megabytes(model.bytes),
                wording.perplexity(model.perplexity),
                wording.divergence(model.kl),
                _speed(model.tokens_per_second, dense.tokens_per_second if dense else None),
                _speed(model.decode_tokens_per_second, dense.decode_tokens_per_second if dense else None),
            )
        )
    return rows


def comparison_table(summary: Summary) -> Table:
    """Make the comparison for the terminal, with the model that is saved in bold.

    Where the terminal is narrow, shares and factors go to a line of their own; no figure is cut.
    """
    rows = comparison_rows(summary)
    table = tables.terminal(TERMINAL_COLUMNS, rows, bold=len(rows) - 1)
    for place, heading in enumerate(TERMINAL_COLUMNS):
        # What stays on one line: words of a name; a figure, and its share or factor.
        cells = (row[place] for row in rows)
        pieces = [*heading.split(), *(part for cell in cells for part in re.split(r" (?=\()" if place else " ", cell))]
        table.columns[place].min_width = max(map(len, pieces))
    return table


def _speed(rate: float | None, dense: float | None) -> str:
    times = wording.factor(rate, dense)
    return wording.rate(rate) + (f" (×{times})" if times else "")
