"""Rows of a comparison: a method, or a variant of the search, with the steps after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.recipe import Recipe, find_recipe, load_recipe
from darwinlm.recipe.load import read_yaml
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.limits import shorten, suggestion
from darwinlm.steps.search.search_method import SEARCH_METHODS
from lab.comparison.methods import BASELINES

OURS, DENSE = "darwinlm", "dense"
STEPS = ("refit", "recovery")
"""Steps after a method, in this order."""
HELD_OUT = "held out"


def everywhere() -> tuple[str, ...]:
    """Baselines for every model: all but those that rank experts."""
    return tuple(name for name, method in BASELINES.items() if not method.mixtures)


@dataclass(frozen=True)
class MethodRow:
    """One row: a method or a variant of the search, and the steps after it in the order of `STEPS`."""

    base: str
    steps: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name for `--methods`."""
        return "+".join((self.base, *self.steps))

    def recipe(self, whole: Recipe) -> Recipe:
        """A recipe with the refit and the recovery of this row only."""
        refit = whole.refit if "refit" in self.steps else whole.refit.model_copy(update={"tokens": 0})
        recovery = whole.recovery if "recovery" in self.steps else whole.recovery.model_copy(update={"tokens": 0})
        return whole.model_copy(update={"refit": refit, "recovery": recovery})

    def check(self, recipe: Recipe) -> None:
        """Refuse steps that the recipe disables. Raises RecipeError."""
        if "refit" in self.steps and not recipe.refit.tokens:
            raise RecipeError(f"--methods names {self.name}, but refit.tokens is 0")
        if "recovery" in self.steps and not recipe.recovery.tokens:
            raise RecipeError(
                f"--methods names {self.name}, but recovery.tokens is 0: say how many tokens to train on, such as "
                "--set recovery.tokens=300k"
            )


def parse_methods(text: str, recipe: Recipe, variants: Sequence[str] = ()) -> tuple[MethodRow, ...]:
    """Read `uniform,ziplm+recovery,darwinlm+refit+recovery`.

    `all` stands for all methods except those that rank experts, and for DarwinLM with every step of the recipe.
    `variants` are names of further searches, which may have steps too; those that aren't named follow without steps.
    Raises RecipeError if a name or a step isn't known (the message suggests a similar one), or a row is named twice.
    """
    if text == "all":
        refit = ("refit",) if recipe.refit.tokens else ()
        chains = [refit, (*refit, "recovery") if recipe.recovery.tokens else ()]
        plain = (MethodRow(name) for name in (*everywhere(), OURS))
        return (*plain, *(MethodRow(OURS, steps) for steps in chains if steps), *map(MethodRow, variants))
    items = [part.strip() for part in text.split(",") if part.strip()]
    known = [*BASELINES, OURS, *variants]
    if not items:
        raise RecipeError(f"--methods is empty: give all, or some of {', '.join(known)}")
    rows = []
    for item in items:
        base, *steps = (part.strip() for part in item.split("+"))
        if base not in known:
            hint = suggestion(base, known, f"known are {', '.join(known)}")
            if base in SEARCH_METHODS:
                hint = (
                    f"it is a search, which is compared as a variant. Write 'search: {{method: {base}}}' into a file, "
                    f"and add --variant {base}=FILE"
                )
            raise RecipeError(f"--methods: there is no method '{base}': {hint}")
        if steps != [step for step in STEPS if step in steps]:
            raise RecipeError(
                f"--methods: a method may be followed by +refit, +recovery or +refit+recovery, not '{item}'"
            )
        rows.append(MethodRow(base, tuple(steps)))
    if len(set(rows)) < len(rows):
        raise RecipeError(f"--methods names one twice: {', '.join(row.name for row in rows)}")
    return (*rows, *(MethodRow(name) for name in variants if name not in {row.base for row in rows}))


def parse_named(option: str, items: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=SOURCE` strings of an option. Raises RecipeError."""
    named: list[tuple[str, str]] = []
    for item in items:
        name, separator, source = (part.strip() for part in item.partition("="))
        if not separator or not name or not source:
            raise RecipeError(f"{option} takes NAME=SOURCE, not '{item}'")
        if name in (HELD_OUT, *BASELINES, OURS, DENSE, *(known for known, _ in named)):
            raise RecipeError(f"{option} names '{name}' twice")
        if set(name) & set("+,/\\"):
            raise RecipeError(f"{option}: the name '{name}' must not contain + , / or \\")
        named.append((name, source))
    return tuple(named)


def variant_recipe(recipe: Recipe, name: str, source: str) -> Recipe:
    """The same recipe with other search settings, from a recipe with only the differences.

    Raises RecipeError if that is wrong, or changes more than search, units, database, refit and recovery.
    """
    path = find_recipe(source)
    tree = read_yaml(path) if path.is_file() else None
    allowed = ("search", "units", "database", "refit", "recovery")
    if not isinstance(tree, dict) or not set(tree) <= set(allowed):
        raise RecipeError(
            f"--variant {name}: {source} must be a recipe with nothing but {', '.join(allowed)}, so that model, text "
            "and budget stay comparable"
        )
    for section, part in tree.items():
        if not isinstance(part or {}, dict):
            raise RecipeError(f"--variant {name}: {section} must be a mapping of fields, not {shorten(part)}")
    flat = {f"{section}.{field}": value for section, part in tree.items() for field, value in (part or {}).items()}
    return load_recipe(recipe, (), flat)
