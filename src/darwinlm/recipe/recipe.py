"""The whole configuration: one schema for Python, YAML files and the command line.

Each step declares its own section; here they are put together. Every field has a default that suits a first run;
`recipe.default.yaml` lists them. Unknown fields are errors, with a suggestion if a similar one exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator

from darwinlm.model.quantisation import SMALLEST, UNCHOSEN
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.pipeline import STEPS
from darwinlm.recipe.presets import PRESETS, completed
from darwinlm.runtime.section import Section
from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import AnyStep
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.database.database_settings import DatabaseSettings
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.refit.refit_settings import RefitSettings
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.text.shares import SELF, named_parts
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.vocabulary_settings import WHOLE_MODEL, VocabularySettings


class CoreRecipe(Sections):
    """The sections that the code of a run names itself, checked by type."""

    preset: Literal["default", "quick", "thorough", "paper"] = "default"
    """Values of the fields that aren't given. `quick`: about two fifths of the work; `thorough`: four times as much.
    `paper`: the DarwinLM paper's text, units, order and search, and no refit."""
    vocabulary: VocabularySettings = VocabularySettings()
    """Size of the vocabulary."""
    text: TextSettings = TextSettings()
    """Text of all steps."""
    budget: BudgetSettings = BudgetSettings()
    """Size of the result."""
    units: UnitsSettings = Field(UnitsSettings(), validate_default=True)
    """Units and levels."""
    database: DatabaseSettings = DatabaseSettings()
    """The pruning database."""
    search: SearchSettings = SearchSettings()
    """Search for the levels."""
    refit: RefitSettings = RefitSettings()
    """Correction of the stitched model."""
    recovery: RecoverySettings = RecoverySettings()
    """Training afterwards."""

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        preset = PRESETS.get(str(data.get("preset")))
        return data if preset is None else completed(data, preset)

    @field_validator("units")
    @classmethod
    def _a_file_has_a_type(cls, units: UnitsSettings, info: ValidationInfo) -> UnitsSettings:
        budget = info.data.get("budget")  # absent if it is wrong
        if budget is None or budget.kind != "file" or units.quantisation not in (None, UNCHOSEN):
            return units
        return units.model_copy(update={"quantisation": SMALLEST})

    @model_validator(mode="after")
    def _a_budget_for_the_whole_model_chooses_the_vocabulary(self) -> CoreRecipe:
        if not self.vocabulary.auto:
            return self
        if self.budget.kind not in WHOLE_MODEL:
            raise ValueError(
                f"vocabulary is auto, but the budget is {self.budget.kind}, which doesn't weigh the vocabulary against "
                f"the blocks: give {', '.join(WHOLE_MODEL[:-1])} or {WHOLE_MODEL[-1]}, or a number of tokens such as "
                "--vocab 50%"
            )
        if set(named_parts(self.text.source or "")) <= {SELF, ""}:
            raise ValueError(
                "vocabulary is auto, but no text is given: tokens that it doesn't use are removed, so give text in all "
                "languages and of all kinds that the model shall serve, with --text (text.source)"
            )
        return self

    @model_validator(mode="after")
    def _equal_layers_have_equal_groups(self) -> CoreRecipe:
        if self.search.layers == "equal" and self.units.attention == "query_head":
            raise ValueError(
                "search.layers is equal, but units.attention=query_head removes single heads, after which KV heads "
                "serve different numbers of them; use units.attention=lattice"
            )
        return self


def with_sections(steps: Sequence[type[AnyStep]]) -> type[CoreRecipe]:
    """The core's recipe with a section for every step whose settings aren't among it."""
    sections: dict[str, Any] = {
        step.section: (step.Settings, step.Settings())
        for step in steps
        if step.Settings is not None and step.section not in CoreRecipe.model_fields
    }
    return create_model("Recipe", __base__=CoreRecipe, __module__=__name__, __doc__="A whole run.", **sections)


if TYPE_CHECKING:

    class Recipe(CoreRecipe):
        """A whole run: the core's sections, and those of all further steps of the pipeline."""

else:
    Recipe = with_sections(STEPS)


def field_order(recipe: type[CoreRecipe], steps: Sequence[type[AnyStep]]) -> list[str]:
    """Names of all fields of a recipe in the order in which people read them.

    Plain values come first. A further step's section follows that of the step before it.
    """
    plain = [name for name, field in recipe.model_fields.items() if not _is_section(field.annotation)]
    order = [*plain, *(name for name in CoreRecipe.model_fields if name not in plain)]
    previous = order[-1]
    for step in steps:
        if step.section and step.section not in order:
            order.insert(order.index(previous) + 1, step.section)
        previous = step.section or previous
    return order


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
