"""The configuration: its schema in stage order, and its loader."""

from darwinlm.recipe.budget import BUDGETS as BUDGETS
from darwinlm.recipe.budget import Bound as Bound
from darwinlm.recipe.budget import BudgetSettings as BudgetSettings
from darwinlm.recipe.load import find_recipe as find_recipe
from darwinlm.recipe.load import load_recipe as load_recipe
from darwinlm.recipe.load import load_recipes as load_recipes
from darwinlm.recipe.load import options as options
from darwinlm.recipe.load import parse_recipe as parse_recipe
from darwinlm.recipe.load import shipped_recipes as shipped_recipes
from darwinlm.recipe.sections import Recipe as Recipe
from darwinlm.recipe.sections import RecoverySettings as RecoverySettings
from darwinlm.recipe.sections import SearchSettings as SearchSettings
from darwinlm.recipe.sections import SelectionRound as SelectionRound
from darwinlm.recipe.sections import UnitsSettings as UnitsSettings
