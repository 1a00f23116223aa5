"""Whether a run makes equal layers, and which sizes of layers the family's own class and llama.cpp run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from darwinlm.formats.gguf.gguf_format import GGUF
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import is_custom
from darwinlm.model.layer_sizes import BlockSizes, block_sizes
from darwinlm.model.quantisation import in_gguf
from darwinlm.model.surgery.depth import can_lose_blocks, without_blocks
from darwinlm.model.surgery.layer_table import layer_table
from darwinlm.model.surgery.smaller_config import smaller_config
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import BudgetError, RecipeError
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.equal import EqualLayers, equal_layers
from darwinlm.steps.budget.first import check_first
from darwinlm.steps.budget.problem import Budget
from darwinlm.steps.search.search_amounts import SearchAmounts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def choose_layers(recipe: Sections, checkpoint: Checkpoint, space: SearchSpace) -> tuple[bool, str | None]:
    """Whether the run makes equal layers, and what the user should know about it before it starts.

    Raises:
        RecipeError: Equal layers, or the first ones, were asked for, and the model or the units don't have them.
    """
    layers, quantisation = recipe.section(SearchAmounts).layers, recipe.section(UnitsSettings).quantisation
    if layers == "equal":
        if is_custom(checkpoint.config):
            raise RecipeError("--layers equal: the layers of this model already differ; prune its original instead")
        return True, None
    if layers == "first":
        check_first(checkpoint, space)
        return True, None
    if layers == "unequal" or not _only_equal_in_gguf(checkpoint, space):
        return False, None
    about = f"llama.cpp runs {checkpoint.family.model_type} models only with equal layers"
    if in_gguf(quantisation):
        option = "--file" if recipe.section(BudgetSettings).kind == "file" else f"--for {quantisation}"
        return True, f"{about}: with {option} all layers get the same sizes"
    return False, f"{about}, and this run makes unequal ones: for a GGUF file, stop it and prune with --for gguf"


def layers_that_run(
    checkpoint: Checkpoint, space: SearchSpace, cost: CostModel, budget: Budget, *, for_gguf: bool
) -> EqualLayers:
    """All allocations with equal layers that the family's own class runs, and llama.cpp if asked for.

    No block is removed where engines tell the kinds of layers apart by their numbers, as mlx-lm does in Gemma 3.

    Raises BudgetError if no allocation with equal layers runs and keeps the budget.
    """

    def runs(allocation: Allocation, *, without_first: bool = False) -> str | None:
        config = _config_of(checkpoint, space, allocation)
        if without_first:
            config = without_blocks(config, range(1, checkpoint.n_blocks))
        if is_custom(config):
            return f"transformers' own class of {checkpoint.family.model_type} doesn't take the remaining sizes"
        sizes = block_sizes(checkpoint.n_blocks, space.sizes(allocation))[without_first:]
        return _why_not_gguf(checkpoint, config, sizes) if for_gguf else None

    stock = checkpoint.family.gguf
    by_number = stock is not None and bool(stock.whole_depth or stock.period)  # in other engines as well
    removable = can_lose_blocks(checkpoint) and not by_number and runs(space.dense, without_first=True) is None
    layers = equal_layers(space, cost, budget.upper, runs=runs, removable=removable)
    if layers.smallest > budget.limit:
        raise BudgetError(
            f"--layers equal: the smallest model with equal layers has {cost.words(layers.smallest)}, more than "
            f"{cost.words(budget.limit)}: raise the budget, or use --layers unequal"
        )
    return layers


def _config_of(checkpoint: Checkpoint, space: SearchSpace, allocation: Allocation) -> PreTrainedConfig:
    return smaller_config(checkpoint, layer_table(checkpoint.family, checkpoint.n_blocks, space.sizes(allocation)))


def _only_equal_in_gguf(checkpoint: Checkpoint, space: SearchSpace) -> bool:
    """Whether llama.cpp runs this model, but not with a narrower MLP in one of its blocks."""
    sizes = block_sizes(checkpoint.n_blocks, space.sizes(space.dense))
    if is_custom(checkpoint.config) or _why_not_gguf(checkpoint, checkpoint.config, sizes) is not None:
        return False
    first = next(number for number, block in enumerate(sizes) if block.mlp.width)
    mlp = sizes[first].mlp
    sizes[first] = replace(sizes[first], mlp=replace(mlp, width=mlp.width // 2))
    return _why_not_gguf(checkpoint, checkpoint.config, sizes) is not None


def _why_not_gguf(checkpoint: Checkpoint, config: PreTrainedConfig, sizes: list[BlockSizes]) -> str | None:
    """Why llama.cpp doesn't run a model with such blocks; None if it does."""
    numbered = [replace(block, block=number) for number, block in enumerate(sizes)]
    return GGUF.refusal(Checkpoint(checkpoint.folder, config, checkpoint.family, checkpoint.source), numbered)
