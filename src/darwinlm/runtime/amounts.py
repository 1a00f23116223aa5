"""Amounts for people: counts, bytes, times, rates, losses, and what a budget counts."""

from __future__ import annotations

import math

NOTHING = "–"
"""Stands where a figure is missing."""


def count(value: float | None) -> str:
    """A number of parameters or tokens: 820, 53.0 M, 1.24 B."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for unit, digits in (("", 0), (" k", 1), (" M", 1), (" B", 2)):
        if round(abs(value), digits) < 1000:
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    return f"{value:.2f} T"


def plural(number: int, noun: str) -> str:
    """A number of things: 1 thread, 1,024 threads."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(value: float | None) -> str:
    """Bytes in decimal units: 512 bytes, 1.50 kB, 269 MB, 4.29 GB."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for length, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= length:
            part = value / length
            return f"{part:,.0f} {unit}" if part >= 99.95 else f"{part:.3g} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float) -> str:
    """A time: 0.4 s, 12.3 s, 5 min 3 s, 42 min, 1 h 12 min."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 599.5:
        minutes, remainder = divmod(round(seconds), 60)
        return f"{minutes} min" + (f" {remainder} s" if remainder else "")
    hours, remainder = divmod(round(seconds / 60), 60)
    return " ".join(f"{number} {unit}" for number, unit in ((hours, "h"), (remainder, "min")) if number)


def amount(value: float, unit: str) -> str:
    """An amount of what a budget counts: 1,234 parameters, 4.29 GB, 30.1 ms."""
    if unit == "bytes":
        return size(value)
    if unit == "nanoseconds":
        return f"{value / 1e6:,.4g} ms" if value < 1e9 else f"{value / 1e9:.4g} s"
    return f"{value:,.0f} {unit}"


def rate(value: float | None) -> str:
    """Tokens per second."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def percent(part: float | None, whole: float = 1.0) -> str:
    """A share of a whole: 49.9 %."""
    if part is None or not math.isfinite(part) or whole == 0:
        return NOTHING
    return f"{100 * part / whole:.1f} %"


def factor(value: float | None, reference: float | None) -> str:
    """How many times the reference a value is, without the sign: 1.8; empty where it can't be known."""
    if value is None or not reference or not math.isfinite(value / reference):
        return ""
    ratio = value / reference
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}" if ratio >= 0.095 else f"{ratio:.2g}"


def nats(value: float | None) -> str:
    """A KL or a loss in nats per token."""
    if value is None or math.isnan(value):
        return NOTHING
    return "∞" if math.isinf(value) else f"{value:.3f}"


NATS = "nats per token"
"""Unit of the KL between language models."""


def loss(value: float | None, unit: str = NATS) -> str:
    """A distance to the dense model with its name: `KL 0.123`, or of other models `distance of scores 0.00123`."""
    if unit == NATS:
        return f"KL {nats(value)}"
    return f"{unit} {three_digits(value)}"


def three_digits(value: float | None) -> str:
    """A number in three significant digits."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.3g}"


def perplexity(value: float | None) -> str:
    """A perplexity: 4.31, 48.4, 1,204; beyond a million only its order matters."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞"
    if value >= 999_999.5:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if value >= 999.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
