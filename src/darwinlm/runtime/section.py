"""What all sections of the recipe have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A closed, frozen part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def settings_taken(cls) -> dict[str, str]:
        """Names of the settings that a recipe may give in this section, with their meanings."""
        return {name: field.description or "" for name, field in cls.model_fields.items()}
