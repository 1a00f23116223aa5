"""The search problem: levels of each module, their costs, and a check of the budget; no weights are read."""

from __future__ import annotations

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.quantisation import in_gguf
from darwinlm.model.units.cost import CostModel
from darwinlm.planning.run_plan import check_memory
from darwinlm.recipe import Recipe
from darwinlm.runtime import parallel
from darwinlm.steps.budget.bounds import Counted, bounded
from darwinlm.steps.budget.layers import choose_layers, layers_that_run
from darwinlm.steps.budget.problem import Problem, space_of
from darwinlm.steps.run_sizes import Sizes


def problem_of(recipe: Recipe, dense: Checkpoint, latency: CostModel | None) -> tuple[Problem, str | None]:
    """The search space, its costs and the budget, and what the user should know about layers. Raises BudgetError."""
    shapes = module_shapes(dense)
    space = space_of(recipe, dense, shapes)
    outside = sum(each.numel() for each in dense.outline.parameters()) - space.params(space.dense)
    equal, note = choose_layers(recipe, dense, space, shapes)
    cost = Counted(recipe, dense, space, shapes, outside, equal).cost or latency
    assert cost is not None, "the cost is measured"
    budget, layers = bounded(cost, recipe, dense), None
    if equal:
        for_gguf = in_gguf(recipe.units.quantisation)
        layers = layers_that_run(dense, space, shapes, cost, budget, for_gguf=for_gguf)
    return Problem(space, cost, budget, outside, layers), note


def check_budget(recipe: Recipe, original: Checkpoint, device: torch.device) -> None:
    """Refuse an impossible budget before the first stage works, if it can be counted without a smaller vocabulary.

    Raises BudgetError, or DeviceMemoryError if the run needs more memory than the device has.
    """
    if recipe.vocabulary is None and not recipe.budget.timed:
        problem_of(recipe, original, None)
    check_memory(Sizes(original, recipe, parallel.size()), device)
