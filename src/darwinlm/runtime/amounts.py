"""Amounts for people: bytes, times, and what a budget counts."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in decimal units: 512 bytes, 1.50 kB, 269 MB, 4.29 GB."""
    for length, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= length:
            value = count / length
            return f"{value:,.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """A time: 0.4 s, 12.3 s, 5 min 3 s, 42 min, 1 h 12 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, rest = divmod(round(seconds / 60), 60)
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{rest} min"] * (rest > 0))


def amount(value: float, unit: str) -> str:
    """An amount of what a budget counts: 1,234 parameters, 4.29 GB, 30.1 ms."""
    if unit == "bytes":
        return size(value)
    if unit == "nanoseconds":
        return f"{value / 1e6:,.4g} ms" if value < 1e9 else f"{value / 1e9:.4g} s"
    return f"{value:,.0f} {unit}"
