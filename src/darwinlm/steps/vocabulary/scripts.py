"""What a smaller vocabulary does to each script: tokens that are kept, and how much longer text in it becomes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

NAMES: Mapping[str, str] = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "KATAKANA-HIRAGANA": "Kana"}
"""Scripts whose names aren't the first word of their characters' names in Unicode."""
NO_LETTERS = "signs without letters"
"""Digits, punctuation, white space, emoji, and parts of characters."""
LONGER, FEW = 1.1, 50
"""Growth of text that is worth a warning, and the number of a script's tokens below which it isn't shown."""
RANK = 100
"""Added to a token's rank in the estimate of its frequency, 1 / (rank + RANK) as in the law of Zipf and Mandelbrot."""


@dataclass(frozen=True)
class ScriptFigures:
    """Tokens of a script.

    Attributes:
        kept: Number of its tokens that are kept.
        tokens: Number of all its tokens.
        longer: Factor by which text in it has more tokens, estimated from the order of its tokens.
    """

    kept: int
    tokens: int
    longer: float


def script_of(text: str) -> str:
    """The script of a text's first letter: Latin, Han, Kana, Cyrillic ..., or `NO_LETTERS`."""
    for character in text:
        if character.isalpha():
            first = unicodedata.name(character, "OTHER").split(" ")[0]
            return NAMES.get(first, first.title())
    return NO_LETTERS


def script_figures(texts: Mapping[int, str], kept: Set[int], spelt: Mapping[int, int]) -> dict[str, ScriptFigures]:
    """Figures of all scripts, those with the most tokens first.

    Args:
        texts: Text of every token; a trained tokenizer gives frequent tokens low numbers.
        kept: Numbers of the kept tokens.
        spelt: Number of kept tokens that spell each removed one.
    """
    by_script: dict[str, list[int]] = {}
    for number in sorted(texts):
        by_script.setdefault(script_of(texts[number]), []).append(number)
    figures = {name: _figures(numbers, kept, spelt) for name, numbers in by_script.items()}
    return dict(sorted(figures.items(), key=lambda item: -item[1].tokens))


def losses(figures: Mapping[str, ScriptFigures]) -> tuple[str, ...]:
    """What goes: a clause for each script whose text has clearly more tokens."""
    return tuple(
        f"{name}: {script.tokens - script.kept:,} of {script.tokens:,} tokens go; text in it takes about "
        f"{script.longer:.1f} times as many"
        for name, script in figures.items()
        if script.longer >= LONGER and script.tokens >= FEW
    )


def _figures(numbers: Iterable[int], kept: Set[int], spelt: Mapping[int, int]) -> ScriptFigures:
    weights = {number: 1 / (rank + RANK) for rank, number in enumerate(numbers)}
    longer = sum(weight * (1 if number in kept else spelt[number]) for number, weight in weights.items())
    return ScriptFigures(len(weights.keys() & kept), len(weights), longer / sum(weights.values()))
