"""Size against loss of a sweep: its page."""

from __future__ import annotations

from collections.abc import Mapping

from darwinlm.report import wording
from darwinlm.report.comparison import sweep_table
from darwinlm.report.curve_figures import CurveFigures
from darwinlm.report.pictures.sizes import sweep_picture
from darwinlm.report.render import charts, render
from darwinlm.report.summary import Summary


def sweep_page(sizes: Mapping[str, Summary]) -> str:
    """`index.html`: the table with a link to each model's page. The runs share model, text and machine."""
    largest = next(iter(sizes.values()))
    table = sweep_table(sizes)
    return render(
        "sweep.html.j2",
        title=f"{wording.plain_name(largest.model)} in {len(sizes)} smaller sizes",
        table=table,
        rows=list(zip((None, *sizes), table.rows, strict=True)),
        first=largest,
        size_charts=charts(sweep_picture(sizes)),
        curve=sweep_curve(sizes),
    )


def sweep_curve(sizes: Mapping[str, Summary]) -> CurveFigures | None:
    """Score against size over all sizes; None unless all were measured on the same items."""
    curves = [summary.curve for summary in sizes.values() if summary.curve is not None]
    if not curves or len(curves) < len(sizes) or any(curve.items != curves[0].items for curve in curves):
        return None
    return CurveFigures.joined(curves)
