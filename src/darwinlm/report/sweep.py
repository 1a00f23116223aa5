"""Size against loss of a sweep: its summary, the cells of its tables, and its page."""

from __future__ import annotations

from typing import Literal

from darwinlm.report import wording
from darwinlm.report.render import render
from darwinlm.report.summary import Summary, SweepRow
from darwinlm.runtime.figures import Figures
from darwinlm.runtime.version import VERSION

HEADINGS = ("model", "parameters", "weights", "KL", "perplexity", "prompt", "decode")


class SweepSummary(Figures):
    """What sweep.json holds; the dense model comes first."""

    format: Literal[1] = 1
    version: str = VERSION
    rows: tuple[SweepRow, ...] = ()

    @classmethod
    def of(cls, runs: list[tuple[str, Summary]]) -> SweepSummary:
        """Put the summaries of a sweep's runs beside each other, each with the name of its folder."""
        dense = SweepRow(**dict(runs[0][1].dense), name="dense", folder=None, budget=None)
        sizes = (SweepRow(**dict(one.saved), name=name, folder=name, budget=one.budget) for name, one in runs)
        return cls(rows=(dense, *sizes))


def sweep_cells(sweep: SweepSummary) -> list[tuple[str, ...]]:
    """Rows of cells under `HEADINGS`."""
    return [
        (
            row.name,
            wording.count(row.params),
            wording.size(row.bytes),
            wording.kl(row.kl),
            wording.perplexity(row.perplexity),
            f"{wording.rate(row.tokens_per_second)} tokens/s",
            f"{wording.rate(row.decode_tokens_per_second)} tokens/s",
        )
        for row in sweep.rows
    ]


def sweep_page(sweep: SweepSummary, first: Summary) -> str:
    """`index.html`: the table with a link to each model's page.

    `first` is the summary of any of its runs; they share model, text and machine.
    """
    return render(
        "sweep.html.j2",
        title=f"{wording.plain_name(first.model)} in {len(sweep.rows) - 1} smaller sizes",
        columns=HEADINGS,
        rows=[(row.folder, cells) for row, cells in zip(sweep.rows, sweep_cells(sweep), strict=True)],
        first=first,
    )
