"""Numbers with units: 50%, 2.7B, 4GiB, 30ms, 2x, 30m.

Each parser converts a text to a number and leaves other values to the type check. For an unknown unit, the message
lists the known ones. Case counts only where it distinguishes two units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s]*)\s*")

COUNTS: Mapping[str, float] = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
BYTES: Mapping[str, float] = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate(("k", "M", "G", "T"), 1)},
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)},
}
SECONDS: Mapping[str, float] = {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
FACTORS: Mapping[str, float] = {"": 1, "x": 1, "×": 1}
MINUTES: Mapping[str, float | Decimal] = {"": 1, "m": 1, "min": 1, "s": Decimal(1) / 60, "h": 60}
_DECIMAL = Context(prec=40, traps=[])


def _times(number: str, factor: float | Decimal) -> float:
    """The product of a number in decimal and a factor, rounded once, so that 53.3% is 0.533."""
    exact = factor if isinstance(factor, Decimal) else Decimal(repr(factor))
    return float(_DECIMAL.multiply(_DECIMAL.create_decimal(number), exact))


def parse_share(value: object) -> object:
    """Read '50%' or 0.5 as the share 0.5; other types are left to the type check. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("must be a share such as 50% or 0.5, not true or false")  # noqa: TRY004 - pydantic reports ValueError
    if isinstance(value, str):
        text = value.strip()
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            raise ValueError("must be a share such as 50% or 0.5") from None
        return _times(text[:-1].strip().replace("_", ""), 0.01) if text.endswith("%") else number
    return value


def parse_quantity(value: object, units: Mapping[str, float] | Mapping[str, float | Decimal], example: str) -> object:
    """Read a text as a number with one of the units; other values are returned unchanged.

    `units` holds the factor of each unit; the empty unit allows plain numbers. Messages show the example. Raises
    ValueError if the text is no number, its unit isn't known, or a plain number needs one.
    """
    unit_names = ", ".join(unit for unit in units if unit)
    if isinstance(value, bool):
        raise ValueError(f"must be something like {example}, not true or false")  # noqa: TRY004
    if not isinstance(value, str):
        if isinstance(value, int | float) and "" not in units:
            raise ValueError(f"needs a unit, as in {example}; known are {unit_names}")
        return value
    match = _NUMBER.fullmatch(value)
    if match is None:
        raise ValueError(f"must be a number with a unit, such as {example}; known units are {unit_names}")
    number, suffix = match.groups()
    unit = next((name for name in units if name.lower() == suffix.lower()), suffix) if suffix not in units else suffix
    if unit not in units:
        mistake = "needs a unit" if not unit else f"has an unknown unit '{unit}'"
        raise ValueError(f"{mistake}; known are {unit_names}, as in {example}")
    return _times(number.replace(",", "").replace("_", ""), units[unit])


def parse_part(value: object) -> object:
    """Read '50%' or 0.5 as the share 0.5, and '24k' or 24000 as the number 24000; at most 1 is a share."""
    if isinstance(value, str) and value.strip().endswith("%"):
        share = parse_share(value)
        assert isinstance(share, float), "a text that ends with % is a share"
        if share > 1:
            raise ValueError("must be at most 100 %")
        return share
    return parse_quantity(value, COUNTS, "50% or 24k")


def _whole(value: object) -> object:
    return round(value) if isinstance(value, float) and abs(value) < 1e18 else value


Whole = Annotated[int, Field(le=10**15)]
"""A number of tokens, bytes or parameters; no run needs a larger one. A `ge` here would replace that of a field."""
Seed = Annotated[int, Field(ge=-(10**15), le=10**15)]
Repeats = Annotated[int, Field(le=10**6)]
"""A number of repetitions, or a size of which memory is allocated."""
Part = Annotated[float, BeforeValidator(parse_part)]
Share = Annotated[float, BeforeValidator(parse_share)]
Count = Annotated[Whole, BeforeValidator(lambda value: _whole(parse_quantity(value, COUNTS, "2.7B")))]
ByteCount = Annotated[Whole, BeforeValidator(lambda value: _whole(parse_quantity(value, BYTES, "4GiB")))]
Duration = Annotated[
    float,
    BeforeValidator(lambda value: parse_quantity(value, SECONDS, "30ms")),
    PlainSerializer(lambda seconds: f"{seconds!r}s"),  # with its unit, so that it can be read again
]
Minutes = Annotated[float, Field(le=10**6), BeforeValidator(lambda value: parse_quantity(value, MINUTES, "30m"))]
Factor = Annotated[float, BeforeValidator(lambda value: parse_quantity(value, FACTORS, "2x"))]
