"""Figures of the text."""

from __future__ import annotations

from typing import ClassVar

from darwinlm.runtime.figures import Figures, StepFigures

MOSTLY = 0.5
"""Share of the evaluation text from which it is hardly new; chats that a model writes itself share 0.16 of theirs."""


class PurposeFigures(Figures):
    """How much text served a purpose."""

    tokens: int
    documents: int


class TextFigures(StepFigures):
    """The text, in sequences of `sequence_length` tokens, and its purposes by name.

    Attributes:
        known: Share of the evaluation text's tokens that lie in passages of the other text (`shared_passages.py`); None
            for models that read, whose texts may occur with several queries.
    """

    lasting: ClassVar[bool] = False

    source: str | None
    sequence_length: int
    purposes: dict[str, PurposeFigures]
    known: float | None = None

    @property
    def near_copies(self) -> str:
        """A clause about evaluation text that the run's other text has too; empty if it doesn't."""
        if self.known is None or self.known < MOSTLY:
            return ""
        return f"{self.known:.0%} of it in passages that the run's other text has too (near copies, or a template)"
