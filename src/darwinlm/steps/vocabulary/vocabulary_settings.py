"""Settings of the vocabulary."""

from __future__ import annotations

from pydantic import Field, model_validator

from darwinlm.runtime.quantities import Part
from darwinlm.runtime.section import Section

AUTO = "auto"
WHOLE_MODEL = ("params", "bytes", "file", "speedup", "latency")
"""Kinds of budget that count the whole model, so that a smaller vocabulary leaves more for its blocks."""


class VocabularySettings(Section):
    """Size of the vocabulary. In a recipe, `vocabulary: 50%` is short for `vocabulary: {keep: 50%}`."""

    keep: Part | None = Field(None, gt=0)
    """Tokens of the vocabulary to keep, as a share or a number: 50% or 24k, rounded up to a multiple of 64. Those that
    `text.source` uses most, or that the model expects in more text of its kind, are kept; other text takes more tokens.
    None keeps all. `auto` is short for `auto: true`."""
    auto: bool = False
    """Whether the budget, which must be one for the whole model and not `keep`, decides how many tokens are kept: as
    many as let the smaller model need the fewest bits per byte of held-out documents of `text.source`."""

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_size(cls, value: object) -> object:
        if not isinstance(value, dict | VocabularySettings):
            value = {"keep": value}
        if isinstance(value, dict) and value.get("keep") == AUTO:
            return {"auto": True, **{name: given for name, given in value.items() if name != "keep"}}
        return value

    @model_validator(mode="after")
    def _one_size(self) -> VocabularySettings:
        if self.auto and self.keep is not None:
            raise ValueError("give either a number of tokens to keep, or auto")
        return self

    @property
    def cut(self) -> bool:
        """Whether tokens are removed, or may be."""
        return self.auto or self.keep not in (None, 1)
