"""The configuration: its schema in stage order, and its loader."""

from darwinlm.model.units.unit_settings import UnitsSettings as UnitsSettings
from darwinlm.recipe.load import find_recipe as find_recipe
from darwinlm.recipe.load import load_recipe as load_recipe
from darwinlm.recipe.load import load_recipes as load_recipes
from darwinlm.recipe.load import parse_recipe as parse_recipe
from darwinlm.recipe.load import shipped_recipes as shipped_recipes
from darwinlm.recipe.options import RecipeOptions as RecipeOptions
from darwinlm.recipe.options import options as options
from darwinlm.recipe.recipe import Recipe as Recipe
from darwinlm.steps.budget.budget_settings import BudgetSettings as BudgetSettings
from darwinlm.steps.budget.kinds import BUDGETS as BUDGETS
