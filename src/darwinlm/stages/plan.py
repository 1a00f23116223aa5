"""Plan: what may be kept of each module, what it weighs, and whether the budget can be met; no weights are read."""

from __future__ import annotations

from dataclasses import dataclass

from darwinlm.artifact import write_json
from darwinlm.database.levels import module_levels
from darwinlm.families.shapes import module_shapes
from darwinlm.run import Run
from darwinlm.search.space import ParamBudget, SearchSpace, budget_of


@dataclass(frozen=True)
class Plan:
    """The search space and its budget."""

    space: SearchSpace
    budget: ParamBudget


def plan_stage(run: Run) -> Plan:
    """Lay out the search space.

    Raises:
        BudgetError: the budget is below the smallest model.
        RecipeError: the units don't fit the model.
    """
    recipe = run.recipe
    shapes = module_shapes(run.checkpoint)
    space = SearchSpace(tuple(module_levels(run.checkpoint.family, shape, recipe.units) for shape in shapes))
    budget = budget_of(space, recipe.budget.keep, recipe.budget.tolerance)
    key = {
        "config": run.checkpoint.plain_config(),
        "units": recipe.units.model_dump(),
        "budget": recipe.budget.model_dump(),
    }
    with run.stage("plan", key, "plan") as (stage, work):
        if work:
            modules = [
                {"module": module.name, "levels": len(module.levels), "params": module.levels[-1].params}
                for module in space.modules
            ]
            dense = space.params(space.dense)
            write_json(
                stage.folder / "plan.json",
                {"dense_block_params": dense, "lower": budget.lower, "upper": budget.upper, "modules": modules},
            )
    return Plan(space, budget)
