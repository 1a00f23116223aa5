"""The configuration: its schema in stage order, and its loader."""

from darwinlm.recipe.budget import BUDGETS, BudgetSettings
from darwinlm.recipe.load import describe_fields, load_recipe, load_recipes, options, parse_recipe
from darwinlm.recipe.recovery import RecoverySettings
from darwinlm.recipe.search import SearchSettings, SearchStage, TrainingSettings
from darwinlm.recipe.sections import Recipe, UnitsSettings
from darwinlm.recipe.shipped import find_recipe, shipped_recipes

__all__ = [
    "BUDGETS",
    "BudgetSettings",
    "Recipe",
    "RecoverySettings",
    "SearchSettings",
    "SearchStage",
    "TrainingSettings",
    "UnitsSettings",
    "describe_fields",
    "find_recipe",
    "load_recipe",
    "load_recipes",
    "options",
    "parse_recipe",
    "shipped_recipes",
]
