"""Plots as inline SVG: the same input gives the same bytes, and colours follow the page's light or dark scheme.

Figures are made directly, never through pyplot, so nothing is left behind in the process. Every colour has a name:
in the SVG it is `var(--plot-name, colour)`, so that a page may set it, and elsewhere the colour itself holds.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import matplotlib as mpl
from matplotlib import style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from darwinlm.report import wording
from darwinlm.report.summary import GenerationFigures, TrainingPoint

COLOURS = {
    "ink": "#1d2129",
    "muted": "#6a7079",
    "grid": "#dcdfe4",
    "attention": "#2a6fb8",
    "mlp": "#c0640f",
    "gain": "#23845a",
}
"""Named colours and what they are where no page sets them."""

INK, MUTED, GRID, ATTENTION, MLP, GAIN = COLOURS.values()
_BROAD, _NARROW = (7.2, 3.0), (3.6, 2.9)
"""Sizes in inches. On a telephone the letters of a broad plot would have half their height."""

_LABEL_GAP = 15.0
_LARGEST_LOSS = 1e6
_SALT = "darwinlm"


@dataclass(frozen=True)
class SizePoint:
    """A model in the plot of size against loss.

    `size` is in millions of parameters, `loss` a perplexity. `final` marks the model that is saved.
    """

    name: str
    size: float
    loss: float
    final: bool = False


def for_page(draw: Callable[[bool], str]) -> str:
    """A plot in two shapes, of which a page shows the one that fits its width."""
    return f'<div class="broad">{draw(False)}</div><div class="narrow">{draw(True)}</div>'


def search_plot(points: Sequence[GenerationFigures], uniform: float, *, narrow: bool = False) -> str:
    """Draw the best KL so far against time.

    `points` are the start, then every step; at least one. `uniform` is the KL of the best model with equal layers.
    """
    with _style():
        figure, axis = _axes("seconds of search", "KL (nats/token)", narrow=narrow)
        places, losses = [point.seconds for point in points], [point.kl for point in points]
        axis.step(places, losses, where="post", color=ATTENTION, linewidth=1.6, zorder=2)
        better = [point for point in points if point.improved]
        if better:
            where = ([point.seconds for point in better], [point.kl for point in better])
            axis.scatter(*where, s=18, color=GAIN, zorder=3, label="improvement")
        axis.scatter(places[:1], losses[:1], s=46, marker="D", color=MLP, zorder=4, label="start")
        axis.axhline(uniform, color=MUTED, linestyle="--", linewidth=1.2, label="equal layers")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4 if narrow else 8, integer=True))
        axis.margins(x=0.03, y=0.12)
        axis.legend(loc="best")
        return _svg(figure, _name("search", narrow), "Best KL of the search against time")


def recovery_plot(log: Sequence[TrainingPoint], *, narrow: bool = False) -> str:
    """Draw the training loss and the held-out KL against tokens."""
    with _style():
        figure, axis = _axes("tokens trained on", "nats/token", narrow=narrow)
        for colour, label, points in (
            (MUTED, "training loss", [(point.tokens, point.loss) for point in log]),
            (GAIN, "held-out KL", [(point.tokens, point.eval_kl) for point in log]),
        ):
            there = [(tokens, value) for tokens, value in points if value is not None]
            if there:
                axis.plot(*zip(*there, strict=True), color=colour, marker="o", markersize=3.5, label=label)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.count(value)))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4 if narrow else 8))
        axis.margins(x=0.03, y=0.12)
        if any(axis.get_legend_handles_labels()):
            axis.legend(loc="best")
        return _svg(figure, _name("recovery", narrow), "Training loss and held-out KL against tokens")


def size_plot(points: Sequence[SizePoint], *, narrow: bool = False) -> str:
    """Draw models as points: size to the right, perplexity upward.

    Models that predict nothing any more, with a loss above 10⁶, are named below and not drawn.
    """
    lost = [point.name for point in points if not point.loss <= _LARGEST_LOSS]
    points = [point for point in points if point.loss <= _LARGEST_LOSS]
    with _style():
        beyond = f" (off the scale: {'; '.join(lost)})" if lost else ""
        figure, axis = _axes("parameters (M)" + beyond, "perplexity (lower is better)", narrow=narrow)
        if points:
            _draw_points(axis, points)
        figure.draw_without_rendering()
        if points:
            _label_points(axis, points)
        return _svg(figure, _name("size", narrow), "Perplexity of each model against its size")


def _axes(across: str, upward: str, *, narrow: bool) -> tuple[Figure, Any]:
    """An empty figure with the titles of its axes and a grid."""
    figure = Figure(figsize=_NARROW if narrow else _BROAD, layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(across, parse_math=False)
    axis.set_ylabel(upward)
    axis.grid(visible=True, axis="both")
    return figure, axis


def _draw_points(axis: Any, points: Sequence[SizePoint]) -> None:
    largest = max(point.size for point in points)
    losses = [point.loss for point in points]
    for point in points:
        colour = GAIN if point.final else ATTENTION
        axis.scatter([point.size], [point.loss], s=58 if point.final else 40, color=colour, zorder=3)
    axis.set_xlim(0, largest * 1.06)
    if min(losses) > 0 and max(losses) > 8 * min(losses):
        _logarithmic(axis)
        axis.set_ylim(min(losses) / 1.5, max(losses) * 1.6)
    else:
        spread = max(losses) - min(losses) or max(losses) or 1.0
        axis.set_ylim(max(0.0, min(losses) - 0.25 * spread), max(losses) + 0.2 * spread)


def _label_points(axis: Any, points: Sequence[SizePoint]) -> None:
    """Put names beside points, to the side that has room, pushed apart where they would overlap."""
    left, right = axis.get_xlim()
    below: dict[bool, float] = {}
    for point in sorted(points, key=lambda point: point.loss):
        leftward = point.size > left + 0.6 * (right - left)
        _, height = axis.transData.transform((point.size, point.loss))
        height = height * 72 / axis.figure.dpi
        wanted = max(height, below.get(leftward, float("-inf")) + _LABEL_GAP)
        below[leftward] = wanted
        axis.annotate(
            f"{point.name}: {wording.perplexity(point.loss)}",
            (point.size, point.loss),
            xytext=(-10 if leftward else 10, wanted - height),
            textcoords="offset points",
            ha="right" if leftward else "left",
            va="center",
            color=GAIN if point.final else INK,
            parse_math=False,
        )


def _logarithmic(axis: Any) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _name(plot: str, narrow: bool) -> str:
    return f"{plot}-narrow" if narrow else plot


def _style() -> Any:
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


def _svg(figure: Any, name: str, title: str) -> str:
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
