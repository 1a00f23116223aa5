"""How far the models still read their context: the same rows for the page, the terminal and the model card."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from darwinlm.report import wording
from darwinlm.report.summary import CopyingFigures, Summary

WORDS = (
    "Copied: of words or text that the model is given twice, the share of the second time that it predicts (loss in "
    "nats). Seen: KL where the next token stood in the block before; new: where it didn't."
)
"""What the columns mean."""

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def looking_back_rows(summary: Summary, *, losses: bool = True) -> Rows | None:
    """Headings, and a row of cells for each model; None where it wasn't measured of all of them.

    Args:
        summary: of a run.
        losses: whether cells of copying hold the loss too.
    """
    headings: tuple[str, ...] = ()
    rows = []
    for key, model in summary.measured():
        figures = model.looking_back
        if figures is None:
            return None
        headings = ("model", "KL, seen", "KL, new", *(f"copied, {score.name}" for score in figures.copying))
        copied = [_copied(score, losses=losses) for score in figures.copying]
        split = (wording.divergence(figures.kl_seen), wording.divergence(figures.kl_new))
        rows.append((wording.model_name(key, summary), *split, *copied))
    return headings, rows


def looking_back_remarks(summary: Summary) -> tuple[str, ...]:
    """What wasn't measured, and why."""
    figures = summary.dense.looking_back
    return () if figures is None else figures.remarks


def looking_back_table(summary: Summary) -> Table | None:
    """The rows for the terminal, the model that is saved in bold; None where there are none."""
    found = looking_back_rows(summary, losses=False)
    if found is None:
        return None
    headings, rows = found
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row), style="bold" if row is rows[-1] else None)
    return table


def _copied(score: CopyingFigures, *, losses: bool) -> str:
    share = f"{100 * score.accuracy:.0f} %"
    return f"{share} ({score.loss:.2f})" if losses else share
