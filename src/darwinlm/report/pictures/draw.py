"""Charts drawn with matplotlib, without its global state: no backend is chosen and no figure is kept."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING

from matplotlib import rc_context, style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from darwinlm.report.pictures.colours import LIGHT
from darwinlm.runtime.charts import Axis, Bars, Chart, Curve, Level, Picture
from darwinlm.runtime.limits import visible

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 400, 240
"""Size of a chart in CSS pixels of a narrow window; pages scale it to their columns."""
MARGINS = {"left": 66, "right": 18, "top": 26, "bottom": 46}
"""Room around the axes in the same unit; finding the least for each chart would take as long as drawing it."""
POINTS = 72
"""Units of a picture in an inch."""
TITLE = 22
"""Height of a title in the same unit."""
LINE = 14.0
"""Least distance between two labels, in units."""
LETTER = 6.5
"""Width of a letter of a label, in units."""
DISTANCE = 12.0
"""Least distance of the middle of a label from a point of another one that is above it, in units."""
DOTS = 30
"""Most points of a curve that are marked; all others have tips at most."""
TIPS = 60
"""Most points of a curve that have tips."""
STYLE = {
    "font.size": 12.0,
    "axes.labelsize": 12.0,
    "axes.titlesize": 13.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "legend.frameon": False,
    "text.parse_math": False,  # names are no formulas
    "svg.fonttype": "none",  # text stays text, which the page's font draws
    "svg.hashsalt": "darwinlm",
}

Tips = dict[str, tuple[str, ...]]
"""What readers are told who point at a mark, by its id in the SVG: one for each of its points, or one for all of it."""


class ChartFigure(Figure):
    """A figure of matplotlib that notebooks show without pyplot.

    Attributes:
        tips: What readers are told who point at its marks.
    """

    tips: Tips

    def _repr_svg_(self) -> str:
        """The figure as SVG, on white."""
        text = StringIO()
        with drawing():
            self.savefig(text, format="svg", facecolor="white", metadata={"Date": None})
        return text.getvalue()


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in our style, whatever the caller's is; a reader's fonts may have what those here lack."""
    with style.context("default"), rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def figure_of(picture: Picture) -> ChartFigure:
    """All charts of a picture side by side, with their titles."""
    return drawn(picture.charts, titled=True)


def drawn(charts: Sequence[Chart], *, titled: bool) -> ChartFigure:
    """Charts side by side in one figure; `titled` writes their titles above them."""
    with drawing():
        height, top = HEIGHT + TITLE * titled, MARGINS["top"] + TITLE * titled
        figure = ChartFigure(figsize=(len(charts) * WIDTH / POINTS, height / POINTS))
        figure.tips = {}
        columns, inside = figure.subplots(1, len(charts), squeeze=False)[0], WIDTH - MARGINS["left"] - MARGINS["right"]
        figure.subplots_adjust(
            left=MARGINS["left"] / WIDTH / len(charts),
            right=1 - MARGINS["right"] / WIDTH / len(charts),
            bottom=MARGINS["bottom"] / height,
            top=1 - top / height,
            wspace=(WIDTH - inside) / inside,
        )
        for number, (axes, chart) in enumerate(zip(columns, charts, strict=True)):
            _Drawing(axes, chart, figure.tips, f"chart{number}").draw()
            if titled:
                axes.set_title(visible(chart.title), pad=22)
    return figure


def tick(words: Callable[[float], str]) -> Callable[[float, object], str]:
    """Words of a tick: those of a value without zeros at the end, so 80 M and 0.5 instead of 80.0 M and 0.500."""
    return lambda value, place: re.sub(r"\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)", r"\1", words(value))


class _Drawing:
    """One chart on its axes."""

    def __init__(self, axes: Axes, chart: Chart, tips: Tips, name: str) -> None:
        self.axes, self.chart, self.tips, self.name = axes, chart, tips, name

    def draw(self) -> None:
        """Draw axes, marks and legend."""
        axes, chart = self.axes, self.chart
        axes.set(xlabel=visible(chart.x.label), ylabel=visible(chart.y.label))
        for each, axis, most in ((axes.xaxis, chart.x, 7), (axes.yaxis, chart.y, 5)):
            each.set_major_locator(MaxNLocator(most, integer=axis.steps, steps=[1, 2, 2.5, 5, 10]))
            each.set_major_formatter(FuncFormatter(tick(axis.words)))
        axes.margins(x=0.04, y=0.12)
        chart = chart.drawable()
        for mark in chart.marks:
            if isinstance(mark, Bars):
                self._bars(mark)
            elif isinstance(mark, Curve):
                self._curve(mark)
        self._limits(axes.set_xlim, axes.get_xlim(), chart.x)
        self._limits(axes.set_ylim, axes.get_ylim(), chart.y)
        for mark in chart.marks:
            if isinstance(mark, Level):
                self._level(mark)
        self._labels([mark for mark in chart.marks if isinstance(mark, Curve) and mark.labels])
        handles, names = axes.get_legend_handles_labels()
        if names:
            above = any(isinstance(mark, Bars) for mark in chart.marks)
            place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "ncols": len(names), "borderaxespad": 0.1}
            axes.legend(handles[::-1], names[::-1], **(place if above else {"loc": "best"}))

    @staticmethod
    def _limits(set_limits: Callable[[float, float], object], found: tuple[float, float], axis: Axis) -> None:
        if axis.zero:
            set_limits(0.0, found[1])

    def _tell(self, artist: Artist, *tips: str) -> None:
        name = f"{self.name}-tip{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = tuple(visible(" ".join(tip.split())) for tip in tips)

    def _bars(self, bars: Bars) -> None:
        width, (part, total) = 0.76, bars.names or ("", "")
        behind = self.axes.bar(bars.xs, bars.totals, width, color=LIGHT["pale"], label=total)
        before = self.axes.bar(bars.xs, bars.parts, width, color=LIGHT["accent"], label=part)
        for containers in (behind, before):
            for rectangle, tip in zip(containers, bars.tips, strict=True):
                if rectangle.get_height():
                    self._tell(rectangle, tip)
        self.axes.set_ylim(0, 1.04 * max((*bars.totals, *bars.parts), default=1.0) or 1.0)

    def _curve(self, curve: Curve) -> None:
        colour, every = LIGHT[curve.colour], -(-len(curve.xs) // TIPS)
        if curve.joined:
            form = (0, (1.5, 2)) if curve.dotted else "-"
            self.axes.plot(curve.xs, curve.ys, color=colour, linewidth=1.8, linestyle=form, zorder=2)
        if curve.errors:
            self.axes.errorbar(
                curve.xs, curve.ys, curve.errors, fmt="none", ecolor=colour, elinewidth=1.2, capsize=3, zorder=2
            )
        chosen = slice(None, None, max(every, 1))
        marked = len(curve.xs) <= DOTS or not curve.joined
        points = self.axes.scatter(
            curve.xs[chosen],
            curve.ys[chosen],
            s=30 if marked else 60,
            color=colour,
            alpha=None if marked else 0.0,
            label=visible(curve.name) if curve.name else None,
            zorder=3,
            clip_on=False,
        )
        self._tell(points, *curve.tips[chosen])

    def _level(self, level: Level) -> None:
        low, high = self.axes.get_ylim()
        room = 0.12 * (high - low)
        self.axes.set_ylim(min(low, level.y - room), max(high, level.y + room))
        self.axes.axhline(level.y, color=LIGHT[level.colour], linewidth=1.5, linestyle=(0, (5, 3)), zorder=1)
        self.axes.annotate(
            visible(level.label),
            (1.0, level.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            horizontalalignment="right",
            color=LIGHT[level.colour],
        )

    def _labels(self, curves: Sequence[Curve]) -> None:
        """Write labels beside points, one above the other where points are close."""
        (left, right), (low, high) = self.axes.get_xlim(), self.axes.get_ylim()
        unit = 0.72 * HEIGHT / (high - low)
        across = (WIDTH - MARGINS["left"] - MARGINS["right"]) / (right - left)
        points = [point for curve in curves for point in zip(curve.xs, curve.ys, curve.labels, strict=True)]
        taken: list[tuple[bool, float]] = []
        for x, y, label in sorted(points, key=lambda point: point[1]):
            leftward, place = x > left + 0.55 * (right - left), (y - low) * unit
            below = [at for side, at in taken if side == leftward]
            least = below[-1] + LINE if below else LINE / 2
            start, end = sorted((x * across, x * across + (-1 if leftward else 1) * (8 + LETTER * len(label))))
            hidden = [
                (other - low) * unit
                for at, other, _ in points
                if other > y and start < at * across < end and (other - low) * unit - place < DISTANCE
            ]
            raised = max(min([place, *(dot - DISTANCE for dot in hidden)]), least)  # below a point that it would hide
            taken.append((leftward, raised))
            self.axes.annotate(
                visible(label),
                (x, y),
                xytext=(-8 if leftward else 8, raised - place),
                textcoords="offset points",
                horizontalalignment="right" if leftward else "left",
                verticalalignment="center",
                color=LIGHT["ink"],
            )
