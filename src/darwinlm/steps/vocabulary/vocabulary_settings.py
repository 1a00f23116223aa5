"""Settings of the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from darwinlm.runtime.quantities import Part
from darwinlm.runtime.section import Section

if TYPE_CHECKING:
    pass


class VocabularySettings(Section):
    """Size of the vocabulary. In a recipe, `vocabulary: 50%` is short for `vocabulary: {keep: 50%}`."""

    keep: Part | None = Field(None, gt=0)
    """Tokens of the vocabulary to keep, as a share or a number: 50% or 24k, rounded up to a multiple of 64. Those that
    `text.source` uses most are kept; other text takes more tokens. None keeps all."""

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_size(cls, value: object) -> object:
        return value if isinstance(value, dict | VocabularySettings) else {"keep": value}

    @property
    def cut(self) -> bool:
        """Whether some tokens are removed."""
        return self.keep not in (None, 1)
