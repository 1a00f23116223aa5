"""Plan: levels of each module, their costs, and a check of the budget; no weights are read."""

from __future__ import annotations

from darwinlm.database.levels import unfit_widths
from darwinlm.families.shapes import module_shapes
from darwinlm.recipe.quantisation import in_gguf
from darwinlm.recipe.settled import saved_dtype
from darwinlm.run import Run
from darwinlm.runtime.artifact import write_json
from darwinlm.search.problem.problem import Problem, counted_costs, resolve_budget, space_of
from darwinlm.stages.latency import latency_stage
from darwinlm.stages.layers import choose_layers, layers_that_run


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
    equal, note = choose_layers(recipe, run.checkpoint, space, shapes)
    layers = (
        layers_that_run(run.checkpoint, space, shapes, cost, budget, for_gguf=in_gguf(recipe.units.quantisation))
        if equal
        else None
    )
    key = {
        "config": run.checkpoint.plain_config(),
        "units": recipe.units.model_dump(),
        "budget": recipe.budget.model_dump(),
        "costs": [cost.unit, cost.fixed, cost.costs],
        "layers": recipe.search.layers,
    }
    with run.stage("plan", key, "plan") as (stage, work):
        if work:
            unfit = unfit_widths(recipe.units, shapes, int(run.checkpoint.config.hidden_size))
            for message in (unfit, note):
                if message is not None:
                    run.reporter.say(message)
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
    return Problem(space, cost, budget, outside, layers)
