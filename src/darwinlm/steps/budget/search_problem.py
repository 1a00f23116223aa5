"""The search problem: levels of each module, their costs, and a check of the budget; no weights are read."""

from __future__ import annotations

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.quantisation import in_gguf
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import space_of
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.bounds import bounded, cost_of, counted
from darwinlm.steps.budget.first import first_layers
from darwinlm.steps.budget.layers import choose_layers, layers_that_run
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.search.search_amounts import SearchAmounts


def problem_of(
    recipe: Sections, dense: Checkpoint, latency: CostModel | None, *, removed_tokens: int = 0
) -> tuple[Problem, str | None]:
    """The search space, its costs and the budget, and what the user should know about layers.

    With `removed_tokens`, costs are those of the model with so many fewer tokens. Raises BudgetError.
    """
    shapes, units = module_shapes(dense), recipe.section(UnitsSettings)
    space = space_of(units, dense, shapes)
    outside = sum(parameter.numel() for parameter in dense.outline.parameters()) - space.params(space.dense)
    outside -= removed_tokens * params_per_token(dense)
    equal, note = choose_layers(recipe, dense, space)
    model = counted(recipe, dense, space, shapes, outside=outside, equal=equal, removed_tokens=removed_tokens)
    cost = cost_of(recipe, model) or latency
    assert cost is not None, "the cost is measured"
    budget, layers = bounded(recipe, cost, model), None
    only = space.dense if budget.limit >= cost.dense else None
    if not recipe.section(SearchAmounts).narrows:
        only = first_layers(space, cost, budget.limit)
    elif equal:
        layers = layers_that_run(dense, space, cost, budget, for_gguf=in_gguf(units.quantisation))
    return Problem(space, cost, budget, outside, layers, only), note


def check_layers(recipe: Sections, dense: Checkpoint) -> None:
    """Raise RecipeError if the model doesn't have the layers that were asked for."""
    choose_layers(recipe, dense, space_of(recipe.section(UnitsSettings), dense, module_shapes(dense)))


def params_per_token(dense: Checkpoint) -> int:
    """Number of parameters of one token: its rows in the embedding, in a head of its own, and in further embeddings."""
    rows, inside = int(dense.config.vocab_size), f"{dense.family.layers}."
    parameters = dense.outline.named_parameters()
    return sum(
        parameter.numel() // rows
        for name, parameter in parameters
        if parameter.shape[:1] == (rows,) and not name.startswith(inside)
    )
