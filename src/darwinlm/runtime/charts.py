"""Charts as data: what a step or a report shows, without the library that draws it (`report/pictures/`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, TypeVar

from darwinlm.runtime.amounts import count

T = TypeVar("T")
BEYOND = 1e100
"""Size of a figure from which it isn't drawn: the library that draws computes with products of such sizes."""
Colour = Literal["accent", "second", "muted"]
"""A colour of the page, which differs between its light and its dark version."""


def whole(value: float) -> str:
    """A whole number in figures, such as 1,536."""
    return f"{value:,.0f}"


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        label: What it shows, with its unit.
        words: The words of a value at its tick.
        steps: Whether only whole numbers have ticks.
        zero: Whether it begins at 0.
    """

    label: str
    words: Callable[[float], str] = "{:.4g}".format
    steps: bool = False
    zero: bool = False


@dataclass(frozen=True)
class Bars:
    """A bar for each x, of which a part is filled.

    Attributes:
        xs: Places of the bars.
        parts: Heights of the filled parts.
        totals: Heights of the whole bars.
        tips: What a reader is told who points at a bar.
        names: What the filled and the whole bars are, for the legend; empty for none.
    """

    xs: tuple[float, ...]
    parts: tuple[float, ...]
    totals: tuple[float, ...]
    tips: tuple[str, ...]
    names: tuple[str, str] | None = None


@dataclass(frozen=True)
class Curve:
    """Points, joined by a line or not.

    Attributes:
        name: What it is, for the legend; empty if it needs no name.
        xs, ys: Places of the points.
        tips: What a reader is told who points at a point.
        labels: What stands beside the points; empty for none.
        joined: Whether a line joins the points.
        dotted: Whether that line is dotted.
        errors: Standard errors of the points; empty for none.
    """

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    tips: tuple[str, ...]
    colour: Colour = "accent"
    labels: tuple[str, ...] = ()
    joined: bool = True
    dotted: bool = False
    errors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, named by `label` at its end."""

    y: float
    label: str
    colour: Colour = "second"


Mark: TypeAlias = Bars | Curve | Level


@dataclass(frozen=True)
class Chart:
    """A pair of axes with marks. The `title` says what is to be seen."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]

    def drawable(self) -> Chart:
        """The chart without points, errors and levels that have no place on paper, as those of a damaged file may."""
        return replace(self, marks=tuple(mark for each in self.marks if (mark := _drawable(each)) is not None))


def _drawable(mark: Mark) -> Mark | None:
    if isinstance(mark, Level):
        return mark if abs(mark.y) < BEYOND else None
    if isinstance(mark, Bars):
        return mark
    places = zip(mark.xs, mark.ys, strict=True)
    kept = [number for number, (x, y) in enumerate(places) if abs(x) < BEYOND and abs(y) < BEYOND]

    def at(values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[number] for number in kept) if values else ()

    errors = tuple(error if 0 <= error < BEYOND else 0.0 for error in at(mark.errors))
    return replace(mark, xs=at(mark.xs), ys=at(mark.ys), tips=at(mark.tips), labels=at(mark.labels), errors=errors)


@dataclass(frozen=True)
class Picture:
    """Charts that belong together.

    Attributes:
        name: Name by which it is asked for, such as `search`; letters only.
        charts: At least one chart.
        note: How to read it, in a sentence; empty if nothing needs to be said.
    """

    name: str
    charts: tuple[Chart, ...] = field(default=())
    note: str = ""


def counted(label: str, *, zero: bool = False) -> Axis:
    """An axis of parameters or tokens, with ticks such as 80 M."""
    return Axis(label, count, zero=zero)
