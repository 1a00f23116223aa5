"""Bundled recipes: `recipes/` of the repository, `darwinlm/recipes` of an installed wheel."""

from __future__ import annotations

from pathlib import Path

from darwinlm.errors import RecipeError
from darwinlm.limits import suggestion

_HOMES = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")


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
