"""The first layers as they are, and none of the later ones: what `search.layers=first` makes."""

from __future__ import annotations

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import is_custom
from darwinlm.model.surgery.depth import can_lose_blocks
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.runtime.errors import BudgetError, RecipeError


def check_first(checkpoint: Checkpoint, space: SearchSpace) -> None:
    """Raise RecipeError if the family's own class doesn't run the first layers alone."""
    if is_custom(checkpoint.config):
        raise RecipeError("--layers first: the layers of this model already differ; prune its original instead")
    stays = any(module.levels[0].sizes.width for module in space.modules)
    if stays or not can_lose_blocks(checkpoint, range(checkpoint.n_blocks - 1)):
        raise RecipeError(
            f"--layers first: the last layers of this {checkpoint.family.model_type} model can't be left out as a "
            "whole: use --layers unequal"
        )


def first_layers(space: SearchSpace, cost: CostModel, limit: int) -> Allocation:
    """The largest number of first blocks, whole, that cost at most `limit`. Raises BudgetError if not even one does."""
    blocks = sorted({module.block for module in space.modules})
    for last in reversed(blocks):
        kept = tuple(
            level if module.block <= last else 0 for module, level in zip(space.modules, space.dense, strict=True)
        )
        if cost.of(kept) <= limit:
            return kept
    raise BudgetError(
        f"--layers first: the first layer alone has {cost.words(cost.of(kept))}, more than {cost.words(limit)}: raise "
        "the budget, or use --layers unequal"
    )
