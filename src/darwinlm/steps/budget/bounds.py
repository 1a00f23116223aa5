"""The bounds of a search, from the budget of a recipe."""

from __future__ import annotations

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import BudgetError
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.counted import Counted
from darwinlm.steps.budget.problem import Budget
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings


def counted(
    recipe: Sections,
    checkpoint: Checkpoint,
    space: SearchSpace,
    shapes: list[ModuleShape],
    *,
    outside: int,
    equal: bool,
    removed_tokens: int = 0,
) -> Counted:
    """What the costs of a recipe's budget are counted from.

    Args:
        recipe: The recipe.
        checkpoint: The dense model.
        space: Its modules and their levels.
        shapes: Shapes of its modules.
        outside: Number of parameters that aren't pruned.
        equal: Whether all layers get the same sizes.
        removed_tokens: Number of tokens that are removed from the vocabulary, whose rows `outside` doesn't count.
    """
    return Counted(
        checkpoint,
        space,
        shapes,
        outside,
        equal,
        recipe.section(BudgetSettings).context,
        recipe.section(UnitsSettings).quantisation,
        str(recipe.model),
        removed_tokens,
    )


def cost_of(recipe: Sections, model: Counted) -> CostModel | None:
    """Cost of every level of every module for the recipe's budget; None if it must be measured."""
    return recipe.section(BudgetSettings).bound.costs(model)


def bounded(recipe: Sections, cost: CostModel, model: Counted) -> Budget:
    """`resolve_budget`, which must remove something, unless the vocabulary is cut.

    If the budget chooses the vocabulary, all blocks may stay.
    """
    settings, vocabulary = recipe.section(BudgetSettings), recipe.section(VocabularySettings)
    if vocabulary.auto:
        return resolve_budget(cost, settings, whole=True)
    settings.bound.check(cost, model)
    budget = resolve_budget(cost, settings)
    if budget.limit >= cost.dense and vocabulary.keep is None:
        raise BudgetError(
            f"budget.{settings.kind}: {cost.words(budget.limit)} is the whole model: there is nothing to prune; "
            f"the smallest is {_with_share(cost, cost.smallest)}"
        )
    return budget


def resolve_budget(cost: CostModel, budget: BudgetSettings, *, whole: bool = False) -> Budget:
    """Bounds from the budget of a recipe.

    An allocation may leave the recipe's tolerance unused, or one level of the finest module if that is more. In a small
    model a level can exceed the tolerance, so that no allocation would be within the bounds. Raises BudgetError if the
    budget is below the smallest or above the largest model; with `whole`, all blocks are kept in the latter case.
    """
    if not cost.costs:
        raise BudgetError("the model has no attention and no MLP that could be pruned")
    limit = budget.bound.limit(cost)
    if whole:
        limit = min(limit, cost.dense)
    beginning = f"budget.{budget.kind}: {budget.bound.words(cost)}"
    upper = limit - cost.fixed
    if limit < cost.smallest:
        raise BudgetError(
            f"{beginning}, less than the smallest model that the units allow: {_with_share(cost, cost.smallest)}; the "
            f"largest is {_with_share(cost, cost.dense)}"
        )
    if limit > cost.dense:
        raise BudgetError(
            f"{beginning}, more than the whole model: there is nothing to prune; the smallest is "
            f"{_with_share(cost, cost.smallest)}, the largest {_with_share(cost, cost.dense)}"
        )
    unused = max(limit - int(limit * (1 - budget.tolerance)), cost.finest_step)
    # At least one module must remain.
    return Budget(max(upper - unused, cost.smallest - cost.fixed), upper, cost.unit, cost.fixed)


def _with_share(cost: CostModel, amount: int) -> str:
    if cost.unit == "block parameters":
        return f"{amount:,} ({amount / cost.dense:.4%})"
    times = f" ({cost.original / amount:.2f}x)" if cost.unit == "nanoseconds" and amount else ""
    return cost.words(amount) + times
