"""Load recipes from a YAML file, `section.field=value` assignments and overrides. Errors name the field."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from darwinlm.recipe.recipe import Recipe
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import SHOWN, YAML_BYTES, parse_yaml, read_text, shorten, suggestion
from darwinlm.runtime.registry import SettingError
from darwinlm.runtime.section import Section
from darwinlm.steps.budget.kinds import BUDGETS
from darwinlm.steps.search.search_amounts import SelectionRound

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_HOMES = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")
"""Folders of the bundled recipes: in an installed wheel, and in the repository."""

SEVERAL = re.compile(r"(?<!\d),|,(?!\d{3}(?!\d))")
"""A comma between values; one between digits, of which three follow, separates thousands."""
MISTAKES = 5
"""Maximum number of wrong fields in a message."""


def load_recipe(
    recipe: Recipe | Path | str | None = None,
    assignments: Iterable[str] = (),
    overrides: Mapping[str, object] | None = None,
) -> Recipe:
    """Read a recipe: the file, then `section.field=value` assignments, then overrides by dotted name.

    Args:
        recipe: YAML file, name of a bundled recipe, or a recipe to change; None starts from the defaults.
        assignments: Assignments in the syntax of `--set`; values are read as YAML.
        overrides: Values by dotted field name; None values are ignored.

    Raises:
        RecipeError: The file can't be read, a field is unknown (the message suggests a similar one), a value is wrong,
            or the budget has several values (see `load_recipes`).
    """
    assignments = _listed(assignments)
    changes = [*assignments, *(value for value in (overrides or {}).values() if value is not None)]
    if isinstance(recipe, Recipe) and not changes:
        return recipe
    tree, origin = _assembled(recipe, assignments, overrides or {})
    kind = _several(tree)
    if kind is not None:
        raise RecipeError(
            f"budget.{kind} takes one value here, not '{shorten(tree['budget'][kind])}': several sizes need "
            "darwinlm prune, or load_recipes and prune_sweep in Python"
        )
    return parse_recipe(tree, origin)


def load_recipes(
    recipe: Recipe | Path | str | None = None,
    assignments: Iterable[str] = (),
    overrides: Mapping[str, object] | None = None,
) -> list[Recipe]:
    """Read a recipe whose budget may hold several values (`75%,50%` or a list): one recipe for each, in that order.

    Arguments are as in `load_recipe`. Raises RecipeError as it does, or if a value is duplicated.
    """
    tree, origin = _assembled(recipe, _listed(assignments), overrides or {})
    kind = _several(tree)
    if kind is None:
        return [parse_recipe(tree, origin)]
    budget = tree["budget"]
    first, second, *_ = values = _values(budget[kind])
    if first == "0":
        raise RecipeError(f"budget.{kind}: a comma separates several sizes, and 0 is none: did you mean 0.{second}?")
    recipes = [parse_recipe({**tree, "budget": {**budget, kind: value}}, origin) for value in values]
    bounds = [recipe.budget.bound for recipe in recipes]
    if len(set(bounds)) < len(bounds):
        raise RecipeError(f"budget.{kind}: duplicate value in '{shorten(budget[kind])}'")
    return recipes


def _listed(assignments: Iterable[str]) -> tuple[str, ...]:
    """All assignments, which may come from a generator. Raises RecipeError if they aren't several strings."""
    listed = (assignments,) if isinstance(assignments, str) else tuple(assignments)
    if isinstance(assignments, str) or not all(isinstance(assignment, str) for assignment in listed):
        raise RecipeError(f"assignments takes a list such as ['search.seed=1'], not {shorten(repr(assignments))}")
    return listed


def _several(tree: JsonObject) -> str | None:
    budget = tree.get("budget")
    if not isinstance(budget, dict):
        return None
    return next((kind for kind in BUDGETS if len(_values(budget.get(kind))) > 1), None)


def _values(bound: object) -> list[object]:
    if isinstance(bound, str):
        return [part.strip() for part in bound.split(",")] if SEVERAL.search(bound) else [bound]
    return list(bound) if isinstance(bound, list | tuple) else [bound]


def _assembled(
    recipe: Recipe | Path | str | None, assignments: Sequence[str], overrides: Mapping[str, object]
) -> tuple[JsonObject, str]:
    """The tree with assignments and overrides, and its source. A budget among them replaces one of another kind."""
    if isinstance(recipe, Recipe):
        tree, origin = recipe.model_dump(exclude_unset=True), "the recipe"
    else:
        tree, origin = (read_yaml(find_recipe(recipe)), str(recipe)) if recipe else ({}, "the options")
    named = {assignment.partition("=")[0].strip() for assignment in assignments}
    named |= {name for name, value in overrides.items() if value is not None}
    budget = tree.get("budget")
    if isinstance(budget, dict) and any(f"budget.{kind}" in named for kind in BUDGETS):
        tree["budget"] = {name: value for name, value in budget.items() if name not in BUDGETS}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.strip():
            raise RecipeError(
                f"--set takes section.field=value, not '{assignment}': put = before the value, without spaces"
            )
        if others := [word for word in text.split()[1:] if _is_setting(word)]:
            raise RecipeError(
                f"--set {shorten(repr(assignment))} holds several settings: give each its own --set, such as "
                f"--set {shorten(others[0])}"
            )
        try:
            value = parse_yaml(text, strict=True)
        except ValueError as error:
            raise RecipeError(
                f"--set {shorten(name)}: '{shorten(text)}' isn't a YAML value: {shorten(error, 300)}"
            ) from error
        _assign(tree, name.strip(), value)
    for name, value in overrides.items():
        if value is not None:
            _assign(tree, name, value)
    return tree, origin


def _is_setting(word: str) -> bool:
    """Whether a word assigns a field of the recipe."""
    section, _, field = word.partition("=")[0].rpartition(".")
    return "=" in word and section in Recipe.model_fields and field in _taken(Recipe.model_fields[section].annotation)


def parse_recipe(tree: JsonObject, origin: str) -> Recipe:
    """Validate a tree of plain values. Raises RecipeError, which names the wrong fields and the tree's `origin`."""
    try:
        recipe = Recipe.model_validate(dict(tree))
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()[:MISTAKES]]
        raise RecipeError(f"wrong setting in {origin}: " + "; ".join(lines)) from error
    if recipe.model in shipped_recipes() and not Path(recipe.model).exists():
        raise RecipeError(f"{recipe.model} is a bundled recipe, not a model: use --recipe {recipe.model}, and a model")
    return recipe


def shipped_recipes() -> dict[str, Path]:
    """Files of the bundled recipes, by name."""
    home = next((home for home in _HOMES if (home / "llama2-7b-2.7b.yaml").is_file()), None)
    paths = sorted(home.glob("*.yaml"), key=lambda path: path.stem) if home is not None else []
    return {path.name.removesuffix(".yaml"): path for path in paths}


def find_recipe(recipe: str | Path) -> Path:
    """File of a recipe, from a path, which has precedence if it exists, or the name of a bundled recipe.

    Raises RecipeError if it is neither; the message lists the bundled recipes.
    """
    path = Path(recipe).expanduser()
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        return path
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    hint = suggestion(str(recipe), shipped, f"give a YAML file, or one of {', '.join(shipped)}")
    raise RecipeError(f"there is no recipe at {recipe}: {hint}")


def read_yaml(path: Path) -> JsonObject:
    """The tree of a recipe file; empty for an empty file, and without empty sections. Raises RecipeError."""
    try:
        tree = parse_yaml(read_text(path, YAML_BYTES), strict=True)
    except OSError as error:
        raise RecipeError(f"can't read the recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"the recipe {path} isn't YAML: {shorten(error, 300)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise RecipeError(f"the recipe {path} must be a mapping of sections, but it is a {type(tree).__name__}")
    return {name: value for name, value in tree.items() if value is not None or not _is_section(name)}


def _assign(tree: JsonObject, name: str, value: object) -> None:
    *sections, field = name.split(".")
    for section in sections:
        section_tree = tree.setdefault(section, {})
        if not isinstance(section_tree, dict):
            given = shorten(repr(section_tree))
            raise RecipeError(
                f"'{name}': '{section}' isn't a section of the recipe, but {given}: give its fields one by one"
                if _is_section(section)
                else f"'{name}': '{section}' isn't a section of the recipe: sections are {', '.join(_sections())}"
            )
        tree = section_tree
    tree[field] = value


def _explain(detail: ErrorDetails) -> str:
    """A wrong field and what is wrong with it, in one line."""
    location = [part for part in detail["loc"] if isinstance(part, str)]
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(location[:-1])
        hint = suggestion(location[-1], fields, f"known fields are {', '.join(fields)}")
        sections = Recipe.model_fields.items() if len(location) == 1 else ()
        inside = [section for section, field in sections if location[-1] in _taken(field.annotation)]
        hint = f"did you mean {' or '.join(f'{section}.{location[-1]}' for section in inside)}?" if inside else hint
        return f"unknown field '{name}': {hint}"
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    if not name:
        return message
    value = detail["input"]
    if isinstance(setting_error := detail.get("ctx", {}).get("error"), SettingError):
        name, value = ".".join((name, *setting_error.where)), setting_error.value
    if isinstance(value, dict):
        return f"{name}: {message}"
    return f"{name}: {message} (it is {shorten(repr(value[:SHOWN]) if isinstance(value, str) else value)})"


def _fields_at(location: Sequence[str]) -> list[str]:
    section: type[Section] = Recipe
    for part in location:
        annotation = section.model_fields[part].annotation
        section = annotation if isinstance(annotation, type) and issubclass(annotation, Section) else SelectionRound
    return list(section.settings_taken())


def _sections() -> list[str]:
    return [name for name, field in Recipe.model_fields.items() if _taken(field.annotation)]


def _is_section(name: object) -> bool:
    return name in _sections()


def _taken(annotation: object) -> Collection[str]:
    """Names of settings in a field of the recipe, if it is a section."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation.settings_taken()
    return ()
