"""The whole configuration: its schema in stage order, and how it is read."""

from darwinlm.recipe.base import Section
from darwinlm.recipe.budget import BUDGETS, Budget, BudgetKind
from darwinlm.recipe.load import describe_fields, load_recipe, load_recipes, merge, options, parse_recipe
from darwinlm.recipe.quantities import parse_share
from darwinlm.recipe.recovery import Recovery
from darwinlm.recipe.search import FinalistRound, Search, SearchStage, Training
from darwinlm.recipe.sections import (
    Baselines,
    Compute,
    Database,
    Evaluation,
    Export,
    Recipe,
    Refit,
    Text,
    Units,
)
from darwinlm.recipe.shipped import find_recipe, shipped_recipes

__all__ = [
    "BUDGETS",
    "Baselines",
    "Budget",
    "BudgetKind",
    "Compute",
    "Database",
    "Evaluation",
    "Export",
    "FinalistRound",
    "Recipe",
    "Recovery",
    "Refit",
    "Search",
    "SearchStage",
    "Section",
    "Text",
    "Training",
    "Units",
    "describe_fields",
    "find_recipe",
    "load_recipe",
    "load_recipes",
    "merge",
    "options",
    "parse_recipe",
    "parse_share",
    "shipped_recipes",
]
