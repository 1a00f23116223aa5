"""Times of single modules from times of a few whole models.

All n modules of one kind are set to the same level; the others stay dense. If this model takes T, and the model without
these modules takes T₀, one module at that level takes (T - T₀) / n. Other levels are interpolated over their width.
Further widths are measured where the interpolation is inaccurate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel

from darwinlm.model.units.levels import Level

Size = tuple[int, int, int]
"""KV groups, query heads per group (or experts of a mixture), width."""

ABSENT: Size = (0, 0, 0)
GOOD_ENOUGH = 0.01
"""Accepted interpolation error, as a share of the whole model's time."""


def size_of(level: Level) -> Size:
    """The properties of a level that determine its time."""
    return level.groups, level.experts or level.heads, level.width


def measured_lines(sizes: Sequence[Size]) -> list[list[Size]]:
    """Sizes grouped by query heads per group, each by ascending width, without the removed module."""
    lines: dict[int, list[Size]] = {}
    for size in sorted(set(sizes)):
        if size[2]:
            lines.setdefault(size[1], []).append(size)
    return [sorted(line, key=lambda size: size[2]) for _, line in sorted(lines.items())]


def refine(
    lines: Sequence[Sequence[Size]], measure: Callable[[Size], float], *, points: int, known: Mapping[Size, float]
) -> dict[Size, float]:
    """Measure the ends of each line, then the middle of every interval with inaccurate interpolation.

    `lines` are sizes by ascending width. `measure` gives the time of the whole model with all modules of the kind at a
    size, in units of the dense model's. `points` is the maximum number of sizes to measure on a single line; each
    further line adds its two ends.
    """
    times = dict(known)

    def at(size: Size) -> float:
        if size not in times:
            times[size] = measure(size)
        return times[size]

    intervals: list[tuple[int, int, int]] = []
    for number, line in enumerate(lines):
        at(line[0])
        at(line[-1])
        intervals.append((number, 0, len(line) - 1))
    budget = points - 2
    while intervals and budget > 0:
        intervals.sort(key=lambda part: lines[part[0]][part[2]][2] - lines[part[0]][part[1]][2])
        number, low, high = intervals.pop()
        line = lines[number]
        if high - low < 2:
            continue
        middle = (low + high) // 2
        guess = float(np.interp(line[middle][2], [line[low][2], line[high][2]], [at(line[low]), at(line[high])]))
        budget -= line[middle] not in times
        if abs(at(line[middle]) - guess) > GOOD_ENOUGH:
            intervals += [(number, low, middle), (number, middle, high)]
    return times


class LatencyTable(BaseModel):
    """Times of modules, in seconds, and the largest error of predictions for whole models.

    `seconds` are ascending widths and times for each kind of module and number of query heads per group. `fixed` is the
    time of everything else, including modules that are never cut.
    """

    seconds: dict[str, dict[int, tuple[tuple[int, float], ...]]]
    fixed: float
    worst_error: float = 0.0

    def of(self, kind: str, size: Size) -> float:
        """Time of one module; widths between measured ones are interpolated."""
        if not size[2]:
            return 0.0
        pairs = self.seconds[kind][size[1]]
        return float(np.interp(size[2], [width for width, _ in pairs], [time for _, time in pairs]))


def lines_of(
    ratios: Mapping[Size, float], counts: Mapping[int, int], dense: float
) -> dict[int, tuple[tuple[int, float], ...]]:
    """Seconds of one module by width, for each number of query heads per group; they never fall with the width.

    `ratios` are times of the whole model at each size relative to the dense model, including `ABSENT`. `counts` are
    numbers of modules of the kind, for each number of query heads per group. The dense model takes `dense` seconds.
    """
    lines: dict[int, list[tuple[int, float]]] = {}
    for size, ratio in sorted(ratios.items(), key=lambda item: item[0][2]):
        if size != ABSENT:
            seconds = max(0.0, (ratio - ratios[ABSENT]) * dense / counts[size[1]])
            line = lines.setdefault(size[1], [])
            line.append((size[2], max(seconds, line[-1][1]) if line else seconds))
    return {heads: tuple(line) for heads, line in lines.items()}
