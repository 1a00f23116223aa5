"""Bundled recipes: `recipes/` of the repository, `darwinlm/recipes` of an installed wheel."""

from __future__ import annotations

import difflib
from pathlib import Path

from darwinlm.errors import RecipeError

_HOMES = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")


def shipped_recipes() -> dict[str, Path]:
    """Files of the bundled recipes, by name."""
    home = next((home for home in _HOMES if (home / "llama2-7b-2.7b.yaml").is_file()), None)
    return (
        {}
        if home is None
        else {path.name.removesuffix(".yaml"): path for path in sorted(home.glob("*.yaml"), key=lambda path: path.stem)}
    )


def find_recipe(recipe: str | Path) -> Path:
    """File of a recipe, from a path or the name of a bundled recipe.

    Args:
        recipe: Path, which has precedence if it exists, or a name such as "llama2-7b-2.7b".

    Raises:
        RecipeError: It is neither a path nor a known name; the message lists the bundled recipes.
    """
    path = Path(recipe)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        return path
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    near = difflib.get_close_matches(str(recipe), shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"give a YAML file, or one of {', '.join(shipped)}"
    raise RecipeError(f"there is no recipe at {recipe}: {hint}")
