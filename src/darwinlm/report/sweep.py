"""Size against loss of a sweep: its summary, the cells of its tables, and its page."""

from __future__ import annotations

from functools import partial
from typing import Literal

from darwinlm.report import plots, wording
from darwinlm.report.render import render
from darwinlm.report.summary import Summary, SweepRow
from darwinlm.runtime.figures import Figures
from darwinlm.runtime.version import VERSION

HEADINGS = ("model", "parameters", "weights", "KL", "perplexity", "prompt", "decode", "on the front")


class SweepSummary(Figures):
    """What sweep.json holds; the dense model comes first."""

    format: Literal[1] = 1
    version: str = VERSION
    rows: tuple[SweepRow, ...] = ()

    @classmethod
    def of(cls, runs: list[tuple[str, Summary]]) -> SweepSummary:
        """Put the summaries of a sweep's runs beside each other, each with the name of its folder."""
        first = runs[0][1]
        models = [
            ("dense", first.dense, None, first.file.dense if first.file else {}),
            *((name, one.saved, one.budget, one.file.predicted if one.file else {}) for name, one in runs),
        ]
        rows = [
            SweepRow(**dict(model), name=name, folder=None if budget is None else name, budget=budget, files=files)
            for name, model, budget, files in models
        ]
        points = [(row.params, float("inf") if row.kl is None else row.kl) for row in rows]
        front = [not any(size <= params and loss < kl for size, loss in points) for params, kl in points]
        return cls(rows=tuple(row.model_copy(update={"on_front": on}) for row, on in zip(rows, front, strict=True)))


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
            "yes" if row.on_front else "no",
        )
        for row in sweep.rows
    ]


def file_table(sweep: SweepSummary) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows of the predicted sizes of GGUF files; no rows where llama.cpp can't run the models."""
    kinds = tuple(sweep.rows[0].files) if all(row.files for row in sweep.rows) else ()
    rows = [(row.name, *(wording.size(row.files[kind]) for kind in kinds)) for row in sweep.rows] if kinds else []
    return ("GGUF file", *kinds), rows


def sweep_page(sweep: SweepSummary, first: Summary) -> str:
    """`index.html`: the table with a link to each model's page, and the plot.

    `first` is the summary of any of its runs; they share model, text and machine.
    """
    return render(
        "sweep.html.j2",
        title=f"{wording.plain_name(first.model)} in {len(sweep.rows) - 1} smaller sizes",
        columns=HEADINGS[:-1],
        rows=[(row.folder, cells[:-1]) for row, cells in zip(sweep.rows, sweep_cells(sweep), strict=True)],
        files=file_table(sweep),
        beaten=[row.name for row in sweep.rows if not row.on_front],
        draw=partial(plots.size_plot, sweep.rows),
        first=first,
    )
