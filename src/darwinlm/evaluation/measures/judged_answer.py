"""Whether an answer is, or contains, what was expected. Case, white space and punctuation around it don't count."""

from __future__ import annotations

import re

AROUND = "\"'`*_()[]{}“”‘’«» "
"""Quotation marks, brackets and emphasis. Signs stay, since -5, C++ and 50% are other answers than 5, C and 50."""
ENDING = ".,;:!?。"


def normal(text: str) -> str:
    """A text without case, further white space, and what may stand around it in a sentence."""
    return " ".join(text.split()).casefold().lstrip(AROUND).rstrip(AROUND + ENDING)


def contains(answer: str, expected: str) -> bool:
    """Whether an answer has the expected words, as whole words and numbers: 5 isn't in -5, 2.5 or 5,000."""
    words = " ".join(expected.split()).casefold()
    before, after = r"(?<!\w)", r"(?!\w)"
    if words[:1].isdigit():
        before += r"(?<!\d[.,])(?<!\s-)(?<!^-)"
    if words[-1:].isdigit():
        after += r"(?![.,]\d)"
    return re.search(f"{before}{re.escape(words)}{after}", " ".join(answer.split()).casefold()) is not None
