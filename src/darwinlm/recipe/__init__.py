"""The configuration: its schema in stage order, and its loader."""

from darwinlm.recipe.base import Section
from darwinlm.recipe.budget import BUDGETS, BudgetKind, BudgetSettings
from darwinlm.recipe.load import describe_fields, load_recipe, load_recipes, options, parse_recipe
from darwinlm.recipe.quantities import parse_share
from darwinlm.recipe.recovery import RecoverySettings
from darwinlm.recipe.search import SearchSettings, SearchStage, TrainingSettings
from darwinlm.recipe.sections import (
    ComputeSettings,
    DatabaseSettings,
    EvaluationSettings,
    ExportSettings,
    Recipe,
    RefitSettings,
    TextSettings,
    UnitsSettings,
)
from darwinlm.recipe.shipped import find_recipe, shipped_recipes

__all__ = [
    "BUDGETS",
    "BudgetKind",
    "BudgetSettings",
    "ComputeSettings",
    "DatabaseSettings",
    "EvaluationSettings",
    "ExportSettings",
    "Recipe",
    "RecoverySettings",
    "RefitSettings",
    "SearchSettings",
    "SearchStage",
    "Section",
    "TextSettings",
    "TrainingSettings",
    "UnitsSettings",
    "describe_fields",
    "find_recipe",
    "load_recipe",
    "load_recipes",
    "options",
    "parse_recipe",
    "parse_share",
    "shipped_recipes",
]
