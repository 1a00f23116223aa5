"""The whole configuration: its schema in stage order, and how it is read."""

from darwinlm.recipe.load import describe_fields, load_recipe, merge, parse_recipe
from darwinlm.recipe.sections import (
    Baselines,
    Budget,
    Compute,
    Database,
    Evaluation,
    Export,
    Recipe,
    Refit,
    Search,
    SearchStage,
    Section,
    Text,
    Units,
    parse_share,
)
from darwinlm.recipe.shipped import find_recipe, shipped_recipes

__all__ = [
    "Baselines",
    "Budget",
    "Compute",
    "Database",
    "Evaluation",
    "Export",
    "Recipe",
    "Refit",
    "Search",
    "SearchStage",
    "Section",
    "Text",
    "Units",
    "describe_fields",
    "find_recipe",
    "load_recipe",
    "merge",
    "parse_recipe",
    "parse_share",
    "shipped_recipes",
]
