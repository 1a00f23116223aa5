"""Figures of the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from darwinlm.runtime.figures import Figures, StepFigures

if TYPE_CHECKING:
    pass


class PurposeFigures(Figures):
    """How much text served a purpose."""

    tokens: int
    documents: int


class TextFigures(StepFigures):
    """The text, in sequences of `sequence_length` tokens, and its purposes by name."""

    lasting: ClassVar[bool] = False

    source: str | None
    sequence_length: int
    purposes: dict[str, PurposeFigures]
