"""The budget: its bound, and what the kinds of bounds are relative to."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from darwinlm.runtime.quantities import Share, Whole
from darwinlm.runtime.registry import SettingError
from darwinlm.runtime.section import Section
from darwinlm.steps.budget.kinds import BUDGETS, Bound, Keep


class BudgetSettings(Section):
    """The bound on the smaller model, exactly one of the kinds of budget, by its name: `keep: 50%`."""

    bound: Annotated[Bound, BUDGETS] = Keep(value=0.5)
    """The bound. In a recipe it stands under the name of its kind."""
    tolerance: Share = Field(0.005, gt=0, le=0.1)
    """Largest unused share of the budget: 0.005 or 0.5%. If units are coarser, one level."""
    context: Whole = Field(4096, ge=0)
    """Tokens in the KV cache, of all parallel sequences together, for `bytes`; 0 counts only the weights."""
    prefill_tokens: Whole = Field(512, ge=0)
    """Tokens of the timed prompt; 0 skips it."""
    decode_tokens: Whole = Field(128, ge=0)
    """Number of generated tokens whose time is added; 0 skips them."""

    @model_validator(mode="before")
    @classmethod
    def _take_bound(cls, data: object) -> object:
        """Move the bound from under the name of its kind."""
        if not isinstance(data, Mapping) or "bound" in data:
            return data
        bounds = {kind: data[kind] for kind in BUDGETS if data.get(kind) is not None}
        further = {name: value for name, value in data.items() if name not in BUDGETS}
        if len(bounds) > 1:
            raise ValueError(f"give one bound only, not {' and '.join(bounds)} at once")
        if not bounds:
            if len(further) < len(data):
                raise ValueError("no bound is given: give one of " + ", ".join(BUDGETS))
            return further
        ((kind, value),) = bounds.items()
        settings = dict(value) if isinstance(value, Mapping) else {"value": value}
        try:
            return {**further, "bound": BUDGETS.parse({"name": kind, **settings})}
        except SettingError as error:
            inside = () if error.where == ("value",) else error.where
            raise SettingError((kind, *inside), str(error), error.value) from error

    @model_validator(mode="after")
    def _something_is_timed(self) -> BudgetSettings:
        if self.timed and not self.prefill_tokens and not self.decode_tokens:
            raise ValueError("prefill_tokens and decode_tokens are both 0: there is nothing to time")
        return self

    @model_serializer(mode="wrap")
    def _by_kind(self, serialise: SerializerFunctionWrapHandler) -> dict[str, object]:
        """The bound under the name of its kind, as a recipe has it."""
        fields: dict[str, object] = serialise(self)
        if "bound" not in fields:
            return fields
        settings = fields.pop("bound")
        assert isinstance(settings, dict), "a bound has fields"
        kind = settings.pop("name")
        return {kind: settings["value"] if settings.keys() == {"value"} else settings, **fields}

    @classmethod
    def settings_taken(cls) -> dict[str, str]:
        """The kinds of budget in place of `bound`."""
        kinds = {kind: inspect.getdoc(BUDGETS.find(kind)) or "" for kind in BUDGETS}
        return kinds | {name: text for name, text in super().settings_taken().items() if name != "bound"}

    @property
    def kind(self) -> str:
        """Name of the bound's kind."""
        return BUDGETS.name_of(type(self.bound))

    @property
    def timed(self) -> bool:
        """Whether the cost is measured time."""
        return self.bound.timed

    @property
    def keep(self) -> float | None:
        """Share of the block parameters to keep; None for another kind of budget."""
        return self.bound.value if isinstance(self.bound, Keep) else None
