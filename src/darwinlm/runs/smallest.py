"""The smallest size that keeps a bound, by bisection over shares of the block parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

STEP = 0.025
"""Distance of the sizes that may be tried: a search rarely tells closer ones apart."""
LARGEST, SMALLEST = 39, 12
"""The sizes in steps: 97.5 % and 30 %. A smaller model needs training whatever the measure says."""
MOST = (LARGEST - SMALLEST + 1).bit_length()
"""Most sizes that are tried."""
MIDDLE = STEP * (LARGEST + SMALLEST) / 2
"""A share that stands for those that may be tried."""


class Probe(Protocol):
    """A size that was tried."""

    @property
    def holds(self) -> bool:
        """Whether it keeps the bound."""


AnyProbe = TypeVar("AnyProbe", bound=Probe)


@dataclass
class Bracket(Generic[AnyProbe]):
    """What the bisection has found.

    Attributes:
        passing: The smallest size that keeps the bound; None if none does.
        failing: The largest size below it that doesn't; None if none was measured.
        tried: All sizes in the order in which they were tried, with what was measured, or None where it couldn't be.
        alike: Whether it ended because measurements don't tell the two apart.
    """

    passing: tuple[float, AnyProbe] | None = None
    failing: tuple[float, AnyProbe] | None = None
    tried: list[tuple[float, AnyProbe | None]] = field(default_factory=list)
    alike: bool = False


def smallest(
    measure: Callable[[float], AnyProbe | None], tell_apart: Callable[[AnyProbe, AnyProbe], bool]
) -> Bracket[AnyProbe]:
    """Bisect the sizes until neighbours are reached, or sizes that measurements don't tell apart.

    Args:
        measure: Measures the model of a size; None counts as a size that doesn't keep the bound.
        tell_apart: Whether measurements show that the first model, which keeps the bound, is better than the second.
    """
    found: Bracket[AnyProbe] = Bracket()
    low, high = SMALLEST - 1, LARGEST + 1
    while high - low > 1:
        middle = (low + high) // 2
        keep = round(middle * STEP, 4)
        probe = measure(keep)
        found.tried.append((keep, probe))
        if probe is not None and probe.holds:
            high, found.passing = middle, (keep, probe)
        else:
            low, found.failing = middle, None if probe is None else (keep, probe)
        if found.passing and found.failing and not tell_apart(found.passing[1], found.failing[1]):
            found.alike = True
            break
    return found
