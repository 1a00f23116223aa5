"""Plan: levels of each module, their costs, and a check of the budget; no weights are read."""

from __future__ import annotations

from darwinlm.database.levels import unfit_widths
from darwinlm.families.shapes import module_shapes
from darwinlm.recipe.settled import saved_dtype
from darwinlm.run import Run
from darwinlm.runtime.artifact import write_json
from darwinlm.search.problem.problem import Problem, counted_costs, resolve_budget, space_of
from darwinlm.stages.latency import latency_stage


def plan_stage(run: Run) -> Problem:
    """Define the search space and its costs; for a budget in time, measure them.

    Raises:
        BudgetError: The budget is below the smallest or above the largest model.
        RecipeError: The units don't fit the model.
    """
    recipe = run.recipe
    shapes = module_shapes(run.checkpoint)
    space = space_of(recipe, run.checkpoint, shapes)
    whole = sum(parameter.numel() for parameter in run.checkpoint.skeleton().parameters())
    dense = space.params(space.dense)
    outside = whole - dense
    if recipe.budget.kind in ("speedup", "latency"):
        cost = latency_stage(run, space, {(shape.block, shape.kind): shape for shape in shapes}, run.dtype)
    else:
        dtype = saved_dtype(recipe, run.checkpoint.dtype)
        cost = counted_costs(recipe.budget, run.checkpoint, space, shapes, outside=outside, dtype=dtype)
    budget = resolve_budget(cost, recipe.budget)
    key = {
        "config": run.checkpoint.plain_config(),
        "units": recipe.units.model_dump(),
        "budget": recipe.budget.model_dump(),
        "costs": [cost.unit, cost.fixed, cost.costs],
    }
    with run.stage("plan", key, "plan") as (stage, work):
        if work:
            unfit = unfit_widths(recipe.units, shapes, int(run.checkpoint.config.hidden_size))
            if unfit is not None:
                run.reporter.say(unfit)
            modules = [
                {"module": module.name, "levels": len(module.levels), "params": module.levels[-1].params}
                for module in space.modules
            ]
            write_json(
                stage.folder / "plan.json",
                {
                    "model": recipe.model,
                    "dense_block_params": dense,
                    "params_outside_blocks": outside,
                    "unit": cost.unit,
                    "dense": cost.dense,
                    "smallest": cost.smallest,
                    "fixed": cost.fixed,
                    "lower": budget.lower + budget.fixed,
                    "upper": budget.limit,
                    "modules": modules,
                },
            )
    return Problem(space, cost, budget, outside)
