"""The plot of a sweep as inline SVG: the same input gives the same bytes, in the colours of a light or dark page.

Figures are made directly, never through pyplot, so nothing is left behind in the process. Every colour has a name:
in the SVG it is `var(--plot-name, colour)`, so that a page may set it, and elsewhere the colour itself holds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import chdir
from operator import itemgetter
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from darwinlm.report import wording
from darwinlm.report.summary import SweepRow

with chdir(Path(__file__).parent):  # a matplotlibrc in the current folder may be anybody's
    import matplotlib as mpl
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = {
    "ink": "#1d2129",
    "muted": "#6a7079",
    "grid": "#dcdfe4",
    "attention": "#2a6fb8",
    "gain": "#23845a",
}
"""Named colours and what they are where no page sets them."""

INK, MUTED, GRID, ATTENTION, GAIN = COLOURS.values()
SIZE = (6.0, 3.0)
"""Size of a plot in inches."""
Point = tuple[SweepRow, float, float]
"""A model, its size in millions of parameters, and its perplexity."""

_LABEL_GAP = 15.0
_LARGEST_LOSS = 1e6
_SALT = "darwinlm"


def size_plot(rows: Sequence[SweepRow]) -> str:
    """Draw models as points: size to the right, perplexity upward.

    Models that predict nothing any more, with a loss above 10⁶, are named below and not drawn.
    """
    points = [(row, row.params / 1e6, row.perplexity) for row in rows if row.perplexity is not None]
    lost = [row.name for row, _, loss in points if not loss <= _LARGEST_LOSS]
    points = [point for point in points if point[2] <= _LARGEST_LOSS]
    with plot_style():
        beyond = f" (off the scale: {'; '.join(lost)})" if lost else ""
        figure, axis = empty_axes("parameters (M)" + beyond, "perplexity (lower is better)")
        if points:
            _draw_points(axis, points)
        figure.draw_without_rendering()
        _label_points(axis, points)
        return as_svg(figure, "size", "Perplexity of each model against its size")


def empty_axes(across: str, upward: str) -> tuple[Figure, Any]:
    """An empty figure with the titles of its axes and a grid."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(across, parse_math=False)
    axis.set_ylabel(upward)
    axis.grid(visible=True, axis="both")
    return figure, axis


def _draw_points(axis: Any, points: Sequence[Point]) -> None:
    losses = [loss for _, _, loss in points]
    for _, size, loss in points:
        axis.scatter([size], [loss], s=50, color=GAIN, zorder=3)
    axis.set_xlim(0, max(size for _, size, _ in points) * 1.06)
    if min(losses) > 0 and max(losses) > 8 * min(losses):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(min(losses) / 1.5, max(losses) * 1.6)
    else:
        spread = max(losses) - min(losses) or max(losses) or 1.0
        axis.set_ylim(max(0.0, min(losses) - 0.25 * spread), max(losses) + 0.2 * spread)


def _label_points(axis: Any, points: Sequence[Point]) -> None:
    """Put names beside points, to the side that has room, pushed apart where they would overlap."""
    left, right = axis.get_xlim()
    below: dict[bool, float] = {}
    for row, size, loss in sorted(points, key=itemgetter(2)):
        leftward = size > left + 0.6 * (right - left)
        _, height = axis.transData.transform((size, loss))
        height = height * 72 / axis.figure.dpi
        wanted = max(height, below.get(leftward, float("-inf")) + _LABEL_GAP)
        below[leftward] = wanted
        axis.annotate(
            f"{row.name}: {wording.perplexity(loss)}",
            (size, loss),
            xytext=(-10 if leftward else 10, wanted - height),
            textcoords="offset points",
            ha="right" if leftward else "left",
            va="center",
            color=INK,
            parse_math=False,
        )


def plot_style() -> Any:
    """Matplotlib's own defaults, whatever the user has set, with our colours and sizes; undone at the end."""
    ours = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    return style.context(["default", ours])


def as_svg(figure: Any, name: str, title: str) -> str:
    """Write a figure as an `<svg>` element that can stand in a page beside others.

    `name` begins every id, since ids are unique in a page. `title` is read out where the picture can't be seen.
    """
    file = io.StringIO()
    unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": _SALT}):
        FigureCanvasSVG(figure).print_svg(file, metadata=unnamed)
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r'(?<=\sid=")|(?<=href="#)|(?<=url\(#)', f"{name}-", text)
    for colour, value in COLOURS.items():
        text = re.sub(rf"(?<=: ){value}\b", f"var(--plot-{colour}, {value})", text)
    opening, rest = text.split(">", 1)
    opening = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label={quoteattr(title)}>\n <title>{escape(title)}</title>{rest}'
