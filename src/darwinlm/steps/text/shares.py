"""How much text a run reads, by purpose, and how much of it the dense model writes itself."""

from __future__ import annotations

from collections.abc import Iterable

from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import AnyStep
from darwinlm.steps.text.sources import parts_of

SELF = "self"
"""Source that stands for text which the dense model writes itself."""
ORDER = ("calibration", "fitness", "validation", "evaluation", "training")
"""Purposes in the order in which a text that is too short is divided."""
SPARE, SPARE_SEQUENCES = 1.05, 4
"""Factor and sequences above the tokens that are needed, because documents don't end at the borders of purposes. Chats
of SmolLM2-135M filled their purposes with a factor of 1 and 2 sequences."""


def shares_of(recipe: Sections, steps: Iterable[type[AnyStep]]) -> dict[str, int]:
    """Number of tokens for each purpose: the largest number that any of the steps reads."""
    needed: dict[str, int] = {}
    for step in steps:
        for purpose, tokens in step.text_needed(recipe).items():
            needed[purpose] = max(needed.get(purpose, 0), tokens)
    assert needed.keys() <= set(ORDER), f"text has no purposes {needed.keys() - set(ORDER)}"
    return {purpose: needed[purpose] for purpose in ORDER if needed.get(purpose)}


def named_parts(source: str) -> list[str]:
    """The sources that a string names; `self` is never a file."""
    return [source] if source == SELF else parts_of(source)


def own_amount(source: str | None, tokens: float, sequence_length: int) -> int:
    """Number of tokens that the dense model writes itself for a run that reads `tokens` tokens of a source.

    0 if the source doesn't include the model's own text.
    """
    parts = named_parts(source or "")
    share = tokens * parts.count(SELF) / len(parts)
    return int(SPARE * share) + SPARE_SEQUENCES * sequence_length if share else 0
