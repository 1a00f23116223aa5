"""Plan: levels of each module, their costs, and a check of the budget; no weights are read."""

from __future__ import annotations

from typing import Any

import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import ModuleShape, module_shapes
from darwinlm.recipe import Recipe
from darwinlm.recipe.quantisation import in_gguf
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import write_json
from darwinlm.search.budgets import Counted, bounded
from darwinlm.search.problem import Problem, space_of
from darwinlm.stages.execution.plan import check_memory
from darwinlm.stages.execution.sizes import Sizes
from darwinlm.stages.execution.stage import Stage, Task
from darwinlm.stages.layers import choose_layers, layers_that_run
from darwinlm.units.cost import CostModel
from darwinlm.units.space import SearchSpace

FILE = "plan.json"


def _problem(task: Task, dense: Checkpoint, latency: CostModel | None) -> Problem:
    """The search space, its costs, and the budget."""
    recipe, shapes = task.recipe, module_shapes(dense)
    space, outside, equal, cost = _counted(recipe, dense, shapes)
    cost = latency if cost is None else cost
    assert cost is not None, "the cost is measured"
    budget = bounded(cost, recipe, dense)
    layers = None
    if equal:
        for_gguf = in_gguf(recipe.units.quantisation)
        layers = layers_that_run(dense, space, shapes, cost, budget, for_gguf=for_gguf)
    return Problem(space, cost, budget, outside, layers)


def _counted(
    recipe: Recipe, dense: Checkpoint, shapes: list[ModuleShape]
) -> tuple[SearchSpace, int, bool, CostModel | None]:
    """The space, parameters that aren't pruned, whether layers are equal, and the cost; None if it must be measured."""
    space = space_of(recipe, dense, shapes)
    outside = sum(each.numel() for each in dense.outline.parameters()) - space.params(space.dense)
    equal, _ = choose_layers(recipe, dense, space, shapes)
    return space, outside, equal, Counted(recipe, dense, space, shapes, outside, equal).cost


def check_budget(recipe: Recipe, original: Checkpoint, device: torch.device) -> None:
    """Refuse an impossible budget before the first stage works, if it can be counted without a smaller vocabulary.

    Raises BudgetError, or DeviceMemoryError if the run needs more memory than the device has.
    """
    if recipe.vocabulary is None:
        *_, cost = _counted(recipe, original, module_shapes(original))
        if cost is not None:
            bounded(cost, recipe, original)
    check_memory(Sizes(original, recipe, parallel.size()), device)


def _costs(task: Task, dense: Checkpoint, latency: CostModel | None) -> dict[str, Any]:
    dtype = str(dense.dtype) if task.recipe.budget.kind == "bytes" else None
    return {"costs": None if latency is None else [latency.fixed, latency.costs], "dtype": dtype}


def _write(task: Task, dense: Checkpoint, latency: CostModel | None) -> None:
    problem, recipe = _problem(task, dense, latency), task.recipe
    _, note = choose_layers(recipe, dense, problem.space, module_shapes(dense))
    for message in filter(None, (note, dense.left_out)):
        task.context.reporter.say(message)
    space, cost, budget = problem.space, problem.cost, problem.budget
    modules = [
        {"module": module.name, "levels": len(module.levels), "params": module.levels[-1].params}
        for module in space.modules
    ]
    record = {
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
    _write,
    _problem,
    version=3,
    writes="levels of every module, their costs, the budget",
    settings=("units", "budget", "search.layers"),
    key=_costs,
)
"""The search problem: levels of each module, their costs, and the budget."""
