"""Times of single modules from times of a few whole models.

All n modules of one kind are set to the same level; the others stay dense. If this model takes T, and the model without
these modules takes T₀, one module at that level takes (T - T₀) / n. Other levels are interpolated over their width.
Further widths are measured where the interpolation is inaccurate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.layer_sizes import LayerSizes

GOOD_ENOUGH = 0.01
"""Accepted interpolation error, as a share of the whole model's time."""

Line = Sequence[LayerSizes]
"""Sizes of one kind of module by ascending width, between which times are interpolated."""


class Point(NamedTuple):
    """Time of one module of a width."""

    width: int
    seconds: float


class Check(BaseModel):
    """Predicted and measured seconds of a random model, and the relative error of the prediction."""

    predicted: float
    measured: float
    error: float


def line_of(sizes: LayerSizes) -> int:
    """The line of a size: query heads of a KV group (0 if they differ), experts of a mixture, 1 for an MLP."""
    if sizes.kind == "mlp":
        return sizes.experts or 1
    return sizes.heads_per_group


def measured_lines(sizes: Iterable[LayerSizes]) -> list[Line]:
    """Sizes by line, each by ascending width, without the removed module."""
    lines: dict[int, list[LayerSizes]] = {}
    for size in sorted(set(sizes), key=lambda size: (size.width, size.groups, size.head_dim)):
        if size.width:
            lines.setdefault(line_of(size), []).append(size)
    return [line for _, line in sorted(lines.items())]


class Interval(NamedTuple):
    """Places of two timed sizes on a line."""

    line: Line
    low: int
    high: int

    @property
    def length(self) -> int:
        """Difference of their widths."""
        return self.line[self.high].width - self.line[self.low].width


def refine(
    lines: Sequence[Line],
    measure: Callable[[LayerSizes], float],
    *,
    points: int,
    known: Mapping[LayerSizes, float],
) -> dict[LayerSizes, float]:
    """Measure the ends of each line, then the middle of every interval with inaccurate interpolation.

    `measure` gives the time of the whole model with all modules of the kind at a size, in units of the dense model's.
    `points` is the maximum number of sizes to measure on a single line; each further line adds its two ends.
    """
    times = dict(known)

    def at(size: LayerSizes) -> float:
        if size not in times:
            times[size] = measure(size)
        return times[size]

    intervals: list[Interval] = []
    for line in lines:
        at(line[0])
        at(line[-1])
        intervals.append(Interval(line, 0, len(line) - 1))
    budget = points - 2
    while intervals and budget > 0:
        intervals.sort(key=lambda interval: interval.length)
        line, low, high = intervals.pop()
        if high - low < 2:
            continue
        middle = (low + high) // 2
        ends = [line[low], line[high]]
        guess = float(np.interp(line[middle].width, [end.width for end in ends], [at(end) for end in ends]))
        budget -= line[middle] not in times
        if abs(at(line[middle]) - guess) > GOOD_ENOUGH:
            intervals += [Interval(line, low, middle), Interval(line, middle, high)]
    return times


Lines = dict[int, tuple[Point, ...]]
"""Times of one kind of module by ascending width, for each line."""


def time_of(lines: Mapping[ModuleKind, Lines], sizes: LayerSizes) -> float:
    """Seconds of one module; times of widths between measured ones are interpolated."""
    if not sizes.width:
        return 0.0
    points = lines[sizes.kind][line_of(sizes)]
    return float(np.interp(sizes.width, [point.width for point in points], [point.seconds for point in points]))


class LatencyTable(BaseModel):
    """Times of modules, in seconds, and the error of predictions for whole models.

    Attributes:
        seconds: Times for each kind of module, see `time_of`.
        dense: Time of the dense model.
        fixed: Time of everything else, including modules that are never cut.
        head: The part of it that is in proportion to the number of tokens in the vocabulary; 0 if it wasn't timed.
        models_timed: Number of timed models.
        checks: Predictions for random models.
        worst_error: Largest error of these.
    """

    seconds: dict[ModuleKind, Lines]
    dense: float
    fixed: float
    head: float = 0.0
    models_timed: int
    checks: tuple[Check, ...] = ()
    worst_error: float = 0.0


class Ratios(NamedTuple):
    """Times of whole models relative to the dense one's.

    Attributes:
        at: Times with all modules of a kind at one size; MLPs and mixtures are timed apart.
        gone: Time without these modules.
        counts: Number of modules that were timed together, by line.
    """

    at: dict[LayerSizes, float]
    gone: float
    counts: dict[int, int]


def lines_of(ratios: Ratios, dense: float) -> Lines:
    """Seconds of one module by width, for each line; they never fall with the width.

    The dense model takes `dense` seconds.
    """
    lines: dict[int, list[Point]] = {}
    for size, ratio in sorted(ratios.at.items(), key=lambda item: item[0].width):
        line = lines.setdefault(line_of(size), [])
        seconds = max(0.0, (ratio - ratios.gone) * dense / ratios.counts[line_of(size)])
        line.append(Point(size.width, max(seconds, line[-1].seconds) if line else seconds))
    return {number: tuple(line) for number, line in lines.items()}
