"""Plan: levels of each module, their costs, and a check of the budget; no weights are read."""

from __future__ import annotations

from typing import Any

from darwinlm.database.levels import unfit_widths
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.recipe.quantisation import in_gguf
from darwinlm.recipe.settled import saved_dtype
from darwinlm.runtime.artifact import write_json
from darwinlm.search.problem.budgets import RULES, Counted, resolve_budget
from darwinlm.search.problem.cost import CostModel
from darwinlm.search.problem.problem import Problem, space_of
from darwinlm.stages.layers import choose_layers, layers_that_run

FILE = "plan.json"


def _problem(task: Task, dense: Checkpoint, latency: CostModel | None) -> Problem:
    """The search space, its costs, and the budget.

    Raises:
        BudgetError: The budget is below the smallest or above the largest model.
        RecipeError: The units don't fit the model.
    """
    recipe, shapes = task.recipe, module_shapes(dense)
    space = space_of(recipe, dense, shapes)
    outside = sum(each.numel() for each in dense.outline.parameters()) - space.params(space.dense)
    dtype = saved_dtype(recipe, dense.dtype)
    counted = RULES[recipe.budget.kind].costs
    cost = latency if counted is None else counted(Counted(dense, space, shapes, outside, dtype), recipe.budget)
    assert cost is not None, "the cost is measured"
    budget = resolve_budget(cost, recipe.budget)
    equal, _ = choose_layers(recipe, dense, space, shapes)
    layers = None
    if equal:
        for_gguf = in_gguf(recipe.units.quantisation)
        layers = layers_that_run(dense, space, shapes, cost, budget, for_gguf=for_gguf)
    return Problem(space, cost, budget, outside, layers)


def _costs(task: Task, dense: Checkpoint, latency: CostModel | None) -> dict[str, Any]:
    dtype = str(saved_dtype(task.recipe, dense.dtype)) if task.recipe.budget.kind == "bytes" else None
    return {"costs": None if latency is None else [latency.fixed, latency.costs], "dtype": dtype}


def _write(task: Task, dense: Checkpoint, latency: CostModel | None) -> None:
    problem, recipe = _problem(task, dense, latency), task.recipe
    shapes = module_shapes(dense)
    unfit = unfit_widths(recipe.units, shapes, int(dense.config.hidden_size))
    _, note = choose_layers(recipe, dense, problem.space, shapes)
    for message in filter(None, (unfit, note)):
        task.context.reporter.say(message)
    space, cost, budget = problem.space, problem.cost, problem.budget
    modules = [
        {"module": module.name, "levels": len(module.levels), "params": module.levels[-1].params}
        for module in space.modules
    ]
    record = {
        "model": recipe.model,
        "config": dense.plain_config(),
        "units": recipe.units.model_dump(mode="json"),
        "dense_block_params": space.params(space.dense),
        "params_outside_blocks": problem.outside,
        "unit": cost.unit,
        "dense": cost.dense,
        "smallest": cost.smallest,
        "fixed": cost.fixed,
        "lower": budget.lower + budget.fixed,
        "upper": budget.limit,
        "modules": modules,
    }
    write_json(task.folder / FILE, record)


PLAN = Stage(
    "plan",
    _problem,
    work=_write,
    title="plan",
    writes="levels of every module, their costs, the budget",
    settings=("units", "budget", "search.layers"),
    key=_costs,
)
"""The search problem: levels of each module, their costs, and the budget."""
