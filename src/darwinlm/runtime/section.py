"""What all sections of the recipe have in common."""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A closed, frozen part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_is_a_number(cls, value: object, info: ValidationInfo) -> object:
        field = cls.model_fields[str(info.field_name)]
        says_itself = any(isinstance(part, BeforeValidator) for part in field.metadata)
        if isinstance(value, bool) and field.annotation in (int, float) and not says_itself:
            raise ValueError("must be a number")
        return value

    @classmethod
    def settings_taken(cls) -> dict[str, str]:
        """Names of the settings that a recipe may give in this section, with their meanings."""
        return {name: field.description or "" for name, field in cls.model_fields.items()}
