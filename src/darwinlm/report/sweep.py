"""Size against loss of a family of models: a table for the terminal, one in Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from darwinlm.report import plots, wording

Rows = Sequence[Mapping[str, Any]]
HEADINGS = ("model", "parameters", "weights", "KL", "perplexity", "prompt", "decode", "on the front")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        wording.count(row["params"]),
        f"{wording.megabytes(row['bytes'])} MB",
        wording.divergence(row["kl"]),
        wording.perplexity(row["perplexity"]),
        f"{wording.rate(row['tokens_per_second'])} tokens/s",
        f"{wording.rate(row['decode_tokens_per_second'])} tokens/s",
        "yes" if row["on_front"] else "no",
    )


def sweep_table(rows: Rows) -> Table:
    """For the terminal."""
    table = Table(title="size against loss")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def sweep_markdown(rows: Rows) -> str:
    """A Markdown table; a model is on the front when none of its size or smaller has less KL."""
    lines = [HEADINGS, ("---",) + ("---:",) * (len(HEADINGS) - 1), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sweep_plot(rows: Rows) -> str:
    """SVG of size against perplexity."""
    points = [plots.SizePoint(row["name"], row["params"] / 1e6, row["perplexity"], row["on_front"]) for row in rows]
    return plots.size_plot(points, unit="parameters (M)")
