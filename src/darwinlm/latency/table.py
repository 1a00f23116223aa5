"""Times of single modules from times of whole models, with as few models as are needed.

All modules of one kind are put at one level, the others stay as they are. With T the time of such a model, n the number
of modules of the kind and T₀ the time with none of them, one module at that level takes (T - T₀) / n. Levels in between
are interpolated over their width, and a width is measured where interpolation would be off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from darwinlm.database.levels import Level

Size = tuple[int, int, int]
"""KV groups, query heads per group (of a mixture its experts), width."""

ABSENT: Size = (0, 0, 0)
GOOD_ENOUGH = 0.01
"""Interpolation that is off by no more than this part of the whole model's time is left."""


def size_of(level: Level) -> Size:
    """What the time of a level depends on."""
    return level.groups, level.experts or level.heads, level.width


def measured_lines(sizes: Sequence[Size]) -> list[list[Size]]:
    """Sizes in lines of equal query heads per group, each by growing width; a module that is gone is in none."""
    lines: dict[int, list[Size]] = {}
    for size in sorted(set(sizes)):
        if size[2]:
            lines.setdefault(size[1], []).append(size)
    return [sorted(line, key=lambda size: size[2]) for _, line in sorted(lines.items())]


def refine(
    lines: Sequence[Sequence[Size]], measure: Callable[[Size], float], *, points: int, known: Mapping[Size, float]
) -> dict[Size, float]:
    """Measure the ends of each line, then the middle of every interval in which interpolation isn't proven.

    Args:
        lines: Sizes by growing width.
        measure: Time of the whole model with all modules of the kind at a size, in units of the dense model's.
        points: Maximum number of sizes to measure on a single line; each further line adds its two ends.
        known: Sizes whose time is known without measuring.

    Returns:
        The measured times.
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


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of one module at each size.

    Attributes:
        lines: Widths and seconds of each number of query heads per group, growing.
        dense: Seconds of the whole model as it is.
        fixed: Seconds of everything that isn't a module.
    """

    lines: Mapping[str, Mapping[int, tuple[tuple[int, float], ...]]]
    dense: float
    fixed: float

    def seconds(self, kind: str, size: Size) -> float:
        """Time of one module; widths between measured ones are interpolated."""
        if not size[2]:
            return 0.0
        pairs = self.lines[kind][size[1]]
        return float(np.interp(size[2], [width for width, _ in pairs], [time for _, time in pairs]))


def lines_of(ratios: Mapping[Size, float], count: int, dense: float) -> dict[int, tuple[tuple[int, float], ...]]:
    """Seconds of one module over its width, for each number of query heads per group, never falling with the width.

    Args:
        ratios: Time of the whole model at each size over the dense model's; `ABSENT` among them.
        count: Modules of the kind.
        dense: Seconds of the dense model.
    """
    lines: dict[int, list[tuple[int, float]]] = {}
    for size, ratio in sorted(ratios.items(), key=lambda item: item[0][2]):
        if size != ABSENT:
            seconds = max(0.0, (ratio - ratios[ABSENT]) * dense / count)
            line = lines.setdefault(size[1], [])
            line.append((size[2], max(seconds, line[-1][1]) if line else seconds))
    return {heads: tuple(line) for heads, line in lines.items()}
