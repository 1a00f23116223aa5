"""A recipe as the runner knows it: sections of settings, of which each step asks for its own by their class."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field

from darwinlm.runtime.compute_settings import ComputeSettings
from darwinlm.runtime.quantities import Minutes
from darwinlm.runtime.section import Section

AnySection = TypeVar("AnySection", bound=Section)
AnyRecipe = TypeVar("AnyRecipe", bound="Sections")


class Sections(Section):
    """What every recipe has; a pipeline's recipe adds a field for the settings of each of its steps."""

    model: str | None = None
    """Hub id, local folder, or GGUF file."""
    time: Minutes | None = Field(None, gt=0)
    """Time limit of the run (30, 30m, 1h, 90s). It chooses among `quick`, `default` and `thorough`, unless `preset` is
    given, and ends search and recovery."""
    compute: ComputeSettings = ComputeSettings()
    """Device and arithmetic."""

    def section(self, kind: type[AnySection]) -> AnySection:
        """The recipe's section of a class, or of one that derives from it. Raises KeyError if the recipe has none."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, kind):
                return value
        raise KeyError(kind.__name__)
