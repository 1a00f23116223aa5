"""Recipes with less text and fewer steps, for runs with a time limit."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from darwinlm.recipe import Recipe

STAGES = ("database", "search", "refit", "recover", "evaluate")
"""Stages whose time depends on these settings, in order."""

TEXT: dict[str, tuple[tuple[str, int, str], ...]] = {
    "database": (("text.calibration_tokens", 4, "calibration text"),),
    "refit": (("refit.tokens", 32, "text of the refit"), ("text.validation_tokens", 2, "validation text")),
    "recover": (("recovery.tokens", 8, "training"), ("text.validation_tokens", 2, "validation text")),
    "evaluate": (("text.evaluation_tokens", 2, "evaluation text"),),
}
"""Amounts of text of each stage: setting, least number of sequences, and name."""

OPTIONAL = {"refit": "refit.tokens", "recover": "recovery.tokens"}
"""Stages that are left out rather than run on less than their least text, with the setting of their amount. A refit on
less gains nothing (see docs/notebook/training.md); for recovery it is our choice, 2026-11-27."""


def shortened(recipe: Recipe, share: float, stage: str) -> dict[str, Any]:
    """Settings of one stage by dotted name, with its amounts lowered to a share; those that stay are left out.

    `share` is from 0 to 1, `stage` one of `STAGES`.
    """
    if share >= 1:
        return {}
    length = recipe.text.sequence_length
    settings: dict[str, Any] = {}
    if stage in OPTIONAL and share * attrgetter(OPTIONAL[stage])(recipe) < TEXT[stage][0][1] * length:
        return {OPTIONAL[stage]: 0} if attrgetter(OPTIONAL[stage])(recipe) else {}
    for name, sequences, _ in TEXT.get(stage, ()):
        given = attrgetter(name)(recipe)
        wanted = max(int(share * given) // length, sequences) * length
        if wanted < given:
            settings[name] = wanted
    if stage == "search":
        rounds = [_round(recipe, number, share) for number in range(len(recipe.search.stages))]
        if rounds != [each.model_dump() for each in recipe.search.stages]:
            settings["search.stages"] = rounds
    return settings


def _round(recipe: Recipe, number: int, share: float) -> dict[str, Any]:
    """A round of selection with less text; its first one keeps a sequence at least."""
    given, length = recipe.search.stages[number], recipe.text.sequence_length
    tokens = min(given.tokens, max(int(share * given.tokens) // length, 1) * length)
    return given.model_dump() | {"tokens": tokens, "training_tokens": int(share * given.training_tokens)}


def differences(asked: Recipe, taken: Recipe) -> Iterator[str]:
    """What was shortened, in words: `calibration text 8,192 of 65,536 tokens`."""
    for name in OPTIONAL.values():
        if attrgetter(name)(asked) and not attrgetter(name)(taken):
            yield f"no {name.partition('.')[0]}"
    amounts = {name: words for stage in TEXT.values() for name, _, words in stage}
    for name, words in amounts.items():
        given, used = attrgetter(name)(asked), attrgetter(name)(taken)
        if 0 < used < given:
            yield f"{words} {used:,} of {given:,} tokens"
    if taken.search.fitness_needed < asked.search.fitness_needed:
        yield f"text of the search {taken.search.fitness_needed:,} of {asked.search.fitness_needed:,} tokens"
