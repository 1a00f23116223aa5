"""Plan: what may be kept of each module, what it costs, and whether the budget can be met; no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from darwinlm.artifact import write_json
from darwinlm.database.levels import module_levels
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import ModuleShape, head_dim, module_parameters, module_shapes
from darwinlm.recipe import Recipe
from darwinlm.run import Run
from darwinlm.search.problem.cost import Budget, CostModel, KvCache, byte_costs, parameter_costs, resolve_budget
from darwinlm.search.problem.space import SearchSpace, biased_space
from darwinlm.stages.dtype import saved_dtype
from darwinlm.stages.latency import latency_stage
from darwinlm.surgery.bias import biased_kinds

KV_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}


@dataclass(frozen=True)
class Problem:
    """The search space, what its allocations cost, and the budget.

    Attributes:
        space: modules and levels.
        cost: in what the budget counts.
        budget: bounds on it.
        outside: parameters that aren't pruned.
    """

    space: SearchSpace
    cost: CostModel
    budget: Budget
    outside: int


def plan_stage(run: Run) -> Problem:
    """Lay out the search space; for a budget in time, measure it first.

    Raises:
        BudgetError: the budget is below the smallest or above the largest model.
        RecipeError: the units don't fit the model.
    """
    recipe = run.recipe
    shapes = module_shapes(run.checkpoint)
    space = space_of(recipe, run.checkpoint, shapes)
    whole = sum(parameter.numel() for parameter in run.checkpoint.skeleton().parameters())
    dense = dense_parameters(run.checkpoint, shapes)
    outside = whole - dense
    cost = _cost(run, space, shapes, outside)
    budget = resolve_budget(cost, recipe.budget)
    key = {
        "config": run.checkpoint.plain_config(),
        "units": recipe.units.model_dump(),
        "budget": recipe.budget.model_dump(),
        "costs": [cost.unit, cost.fixed, cost.costs],
    }
    with run.stage("plan", key, "plan") as (stage, work):
        if work:
            modules = [
                {"module": module.name, "levels": len(module.levels), "params": module.levels[-1].params}
                for module in space.modules
            ]
            write_json(
                stage.folder / "plan.json",
                {
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


def space_of(recipe: Recipe, checkpoint: Checkpoint, shapes: list[ModuleShape]) -> SearchSpace:
    """Modules and levels, with the biases that the refit is to give them.

    Raises:
        RecipeError: the units don't fit the model, or it can't carry such biases.
    """
    kinds = biased_kinds(recipe.refit, checkpoint)
    space = SearchSpace(tuple(module_levels(checkpoint.family, shape, recipe.units) for shape in shapes))
    return biased_space(space, shapes, checkpoint.family, kinds)


def dense_parameters(checkpoint: Checkpoint, shapes: list[ModuleShape]) -> int:
    """Parameters of the dense model's modules."""
    return sum(module_parameters(checkpoint.family, shape, shape.groups, shape.width) for shape in shapes)


def _cost(run: Run, space: SearchSpace, shapes: list[ModuleShape], outside: int) -> CostModel:
    if run.recipe.budget.kind in ("speedup", "latency"):
        return latency_stage(run, space, {(shape.block, shape.kind): shape for shape in shapes}, run.dtype)
    return counted_costs(run.recipe, run.checkpoint, space, shapes, outside)


def counted_costs(
    recipe: Recipe, checkpoint: Checkpoint, space: SearchSpace, shapes: list[ModuleShape], outside: int
) -> CostModel:
    """Costs in parameters or bytes, which need no measurement.

    Args:
        recipe: its budget says what is counted.
        checkpoint: configuration and family; weights aren't read.
        space: modules and levels.
        shapes: of all modules.
        outside: parameters outside the blocks.
    """
    added = space.params(space.dense) - dense_parameters(checkpoint, shapes)
    if recipe.budget.kind == "keep":
        return parameter_costs(space, added=added)
    if recipe.budget.kind == "params":
        return parameter_costs(space, fixed=outside, added=added)
    dtype = saved_dtype(recipe, checkpoint)
    cache = _cache(recipe, checkpoint, shapes, dtype)
    return byte_costs(space, outside=outside, itemsize=dtype.itemsize, cache=cache, added=added)


def _cache(recipe: Recipe, checkpoint: Checkpoint, shapes: list[ModuleShape], dtype: torch.dtype) -> KvCache:
    """How the saved model's KV cache is counted, sliding windows included."""
    settings, config = recipe.budget, checkpoint.config
    n_blocks = checkpoint.n_blocks
    kinds = layer_kinds(config, n_blocks)
    window = getattr(config, "sliding_window", None) or settings.context
    columns = dict.fromkeys(range(n_blocks), head_dim(config))
    columns |= {shape.block: shape.head_dim for shape in shapes if shape.kind == "attention"}
    sliding = "sliding_attention"
    return KvCache(
        head_dim=[columns[block] for block in range(n_blocks)],
        tokens=[min(settings.context, window) if kind == sliding else settings.context for kind in kinds],
        batch=settings.batch,
        itemsize=dtype.itemsize if settings.kv_dtype == "auto" else KV_BYTES[settings.kv_dtype],
        counters=frozenset(i for i, kind in enumerate(kinds) if kind == sliding or kind not in kinds[:i]),
    )


def layer_kinds(config: Any, n_blocks: int) -> list[str]:
    """Full or sliding attention, by block."""
    kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    return list(getattr(config, "layer_types", None) or [kind] * n_blocks)
