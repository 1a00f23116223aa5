"""Size against loss of a sweep: its summary, a table for the terminal, one in Markdown, a plot, and a page."""

from __future__ import annotations

from typing import Literal

from markupsafe import Markup

from darwinlm import __version__
from darwinlm.figures import FORMAT, Figures
from darwinlm.report import plots, wording
from darwinlm.report.render import render
from darwinlm.report.summary import BudgetFigures, Summary

HEADINGS = ("model", "parameters", "weights", "KL", "perplexity", "prompt", "decode", "on the front")


class SweepRow(Figures):
    """One model of a sweep, named after its budget, with the folder of its run inside the sweep's.

    The dense model, `dense`, has neither. A model is on the front if none of its size or smaller has less KL(dense ‖
    model), in nats per token.
    """

    name: str
    folder: str | None
    budget: BudgetFigures | None
    params: int
    block_params: int
    bytes: int
    kl: float | None
    perplexity: float | None
    tokens_per_second: float | None
    decode_tokens_per_second: float | None
    on_front: bool = False


class SweepSummary(Figures):
    """What sweep.json holds; the dense model comes first."""

    format: Literal[1] = FORMAT
    version: str = __version__
    rows: tuple[SweepRow, ...] = ()

    @classmethod
    def of(cls, runs: list[tuple[str, Summary]]) -> SweepSummary:
        """Put the summaries of a sweep's runs beside each other, each with the name of its folder."""
        models = [("dense", runs[0][1].dense, None), *((name, one.saved, one.budget) for name, one in runs)]
        shared = SweepRow.model_fields.keys() - {"name", "folder", "budget", "on_front"}
        rows = [
            SweepRow(
                name=name,
                folder=None if budget is None else name,
                budget=budget,
                **{field: getattr(model, field) for field in shared},
            )
            for name, model, budget in models
        ]
        points = [(row.params, float("inf") if row.kl is None else row.kl) for row in rows]
        front = [not any(size <= params and loss < kl for size, loss in points) for params, kl in points]
        return cls(rows=tuple(row.model_copy(update={"on_front": on}) for row, on in zip(rows, front, strict=True)))


def _cells(row: SweepRow) -> tuple[str, ...]:
    return (
        row.name,
        wording.count(row.params),
        f"{wording.megabytes(row.bytes)} MB",
        wording.divergence(row.kl),
        wording.perplexity(row.perplexity),
        f"{wording.rate(row.tokens_per_second)} tokens/s",
        f"{wording.rate(row.decode_tokens_per_second)} tokens/s",
        "yes" if row.on_front else "no",
    )


def sweep_cells(sweep: SweepSummary) -> list[tuple[str, ...]]:
    """Rows of cells under `HEADINGS`; a model is on the front when none of its size or smaller has less KL."""
    return list(map(_cells, sweep.rows))


def sweep_plot(sweep: SweepSummary, *, narrow: bool = False) -> str:
    """SVG of size against perplexity."""
    points = [
        plots.SizePoint(row.name, row.params / 1e6, row.perplexity, row.on_front)
        for row in sweep.rows
        if row.perplexity is not None
    ]
    return plots.size_plot(points, narrow=narrow)


def sweep_page(sweep: SweepSummary, first: Summary) -> str:
    """`index.html`: the table with a link to each model's page, and the plot.

    `first` is the summary of any of its runs; they share model, text and machine.
    """
    beaten = [row.name for row in sweep.rows if not row.on_front]
    return render(
        "sweep.html.j2",
        {
            "title": f"{wording.plain_name(first.model)} in {len(sweep.rows) - 1} smaller sizes",
            "columns": HEADINGS[:-1],
            "rows": [(row.folder, _cells(row)[:-1]) for row in sweep.rows],
            "front": (
                f"{' and '.join(beaten)} lose{'s' if len(beaten) == 1 else ''} more than a model of the same size or a "
                "smaller one."
                if beaten
                else "Each size loses less than every smaller one."
            ),
            "svg": Markup(plots.for_page(lambda narrow: sweep_plot(sweep, narrow=narrow))),  # noqa: S704
            "measured_on": wording.measured_on(first),
            "machine": wording.machine_words(first),
        },
    )
