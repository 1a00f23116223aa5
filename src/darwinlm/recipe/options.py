"""Settings that have a short name: options of the commands, and arguments of the functions, that start from a recipe.

To add one, give it a type in `RecipeOptions`, its field in `FIELDS`, and its help in `cli/arguments.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import shorten
from darwinlm.steps.budget.kinds import BUDGETS, BudgetArguments


class RecipeOptions(BudgetArguments, total=False):
    """Settings of a recipe by their short names; None leaves what the recipe has.

    Attributes:
        vocab: Tokens to keep, as a share or a number: 0.5, "50%" or "24k". "auto" leaves it to a budget for the whole
            model and the text.
        time: Time limit of the whole run, in minutes or as "90s" or "1h". It chooses the amount of text, and ends
            search and recovery.
        preset: Amount of work: "quick", "default" or "thorough"; or "paper".
        ready_for: Quantisation whose groups of columns all pruned widths fill: "q4_k_m", "awq", "fp8" ...
        layers: "equal" gives all layers the same sizes, for engines that need them; "unequal" loses less. "first" keeps
            the first layers of a model that reads, unchanged, for a recovery.
        text: Source of the text, or several, of which each gives an equal part.
        answers: Two words, such as "yes,no", of a language model that judges texts.
    """

    vocab: float | str | None
    time: float | str | None
    preset: str | None
    ready_for: str | None
    layers: str | None
    text: str | Path | Sequence[str | Path] | None
    answers: str | None


FIELDS: Mapping[str, str] = {
    "model": "model",
    "vocab": "vocabulary.keep",
    "time": "time",
    "preset": "preset",
    "ready_for": "units.quantisation",
    "layers": "search.layers",
    "text": "text.source",
    "answers": "text.answers",
}
"""Field of each short name, without the kinds of budget."""


def option_types() -> dict[str, Any]:
    """Type of each option by its name; the kinds of budget come last."""
    types = get_type_hints(RecipeOptions)
    return {name: types[name] for name in sorted(types, key=lambda name: name in BudgetArguments.__annotations__)}


def options(**arguments: object) -> JsonObject:
    """Overrides by dotted name of short names, those in `FIELDS` and the kinds of budget; `text` may be a list.

    Raises TypeError for others, RecipeError for a list that doesn't name texts.
    """
    fields = {**FIELDS, **{kind: f"budget.{kind}" for kind in BUDGETS}}
    if unknown := arguments.keys() - fields.keys():
        raise TypeError(f"unexpected arguments {sorted(unknown)}: known are {', '.join(fields)}")
    arguments["text"] = text_source(arguments.get("text"))
    return {fields[name]: plain_path(value) for name, value in arguments.items()}


def text_source(text: object) -> object:
    """A source of text, or several in a list, as a recipe names them; None if there is none.

    Raises RecipeError if something in the list is no name.
    """
    if isinstance(text, list | tuple):
        if wrong := [part for part in text if not isinstance(part, str | os.PathLike)]:
            raise RecipeError(f"text: {shorten(repr(wrong[0]))} names no text: give paths or names of data sets")
        return ",".join(map(os.fspath, text)) or None
    return plain_path(text)


def plain_path(value: object) -> object:
    """A path as text; other values as they are."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value
