"""Whether a run makes equal layers, and which sizes of layers the family's own class and llama.cpp run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from darwinlm.formats.gguf.rope import UnsupportedError
from darwinlm.formats.gguf.stock_layout import choose_layout
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import is_custom
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.quantisation import in_gguf
from darwinlm.model.surgery.block_sizes import BlockSizes
from darwinlm.model.surgery.depth import can_lose_blocks, without_blocks
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.model.surgery.shrink import layer_overrides
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.levels import Level
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import BudgetError, RecipeError
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.equal import EqualLayers, equal_layers
from darwinlm.steps.budget.problem import Budget
from darwinlm.steps.search.step import SearchSettings
from darwinlm.steps.stitch.stitch import chosen_levels, layer_table, smaller_config


def choose_layers(
    recipe: Sections, checkpoint: Checkpoint, space: SearchSpace, shapes: list[ModuleShape]
) -> tuple[bool, str | None]:
    """Whether the run makes equal layers, and what the user should know about it before it starts.

    Raises:
        RecipeError: Equal layers were asked for, and the model or the units don't have them.
    """
    layers, quantisation = recipe.section(SearchSettings).layers, recipe.section(UnitsSettings).quantisation
    if layers == "equal":
        if is_custom(checkpoint.config):
            raise RecipeError("--layers equal: the layers of this model already differ; prune its original instead")
        return True, None
    if layers == "unequal" or not _only_equal_in_gguf(checkpoint, space, shapes):
        return False, None
    about = f"llama.cpp runs {checkpoint.family.model_type} models only with equal layers"
    if in_gguf(quantisation):
        asked = "--file" if recipe.section(BudgetSettings).kind == "file" else f"--for {quantisation}"
        return True, f"{about}: with {asked} all layers get the same sizes"
    return False, f"{about}, and this run makes unequal ones: for a GGUF file, stop it and prune with --for gguf"


def layers_that_run(
    checkpoint: Checkpoint,
    space: SearchSpace,
    shapes: list[ModuleShape],
    cost: CostModel,
    budget: Budget,
    *,
    for_gguf: bool,
) -> EqualLayers:
    """All allocations with equal layers that the family's own class runs, and llama.cpp if asked for.

    No block is removed where engines tell the kinds of layers apart by their numbers, as mlx-lm does in Gemma 3.

    Raises BudgetError if there is none.
    """

    def runs(allocation: Allocation, *, without_first: bool = False) -> str | None:
        config = _config_of(checkpoint, space, shapes, allocation)
        if without_first:
            config = without_blocks(config, range(1, checkpoint.n_blocks))
        if is_custom(config):
            return f"transformers' own class of {checkpoint.family.model_type} doesn't take the remaining sizes"
        sizes = _sizes(space, shapes, allocation)[without_first:]
        return _why_not_gguf(checkpoint, config, sizes) if for_gguf else None

    stock = checkpoint.family.gguf
    by_number = stock is not None and bool(stock.whole_depth or stock.period)  # in other engines as well
    removable = can_lose_blocks(checkpoint) and not by_number and runs(space.dense, without_first=True) is None
    found = equal_layers(space, cost, budget.upper, runs=runs, removable=removable)
    if found.smallest > budget.limit:
        raise BudgetError(
            f"--layers equal: the smallest model with equal layers has {cost.words(found.smallest)}, more than "
            f"{cost.words(budget.limit)}: raise the budget, or use --layers unequal"
        )
    return found


def _config_of(checkpoint: Checkpoint, space: SearchSpace, shapes: list[ModuleShape], allocation: Allocation) -> Any:
    by_place = {(shape.block, shape.kind): shape for shape in shapes}

    def sizes(block: int, kind: Any, level: Level) -> dict[str, Any]:
        return layer_overrides(checkpoint.family, by_place[block, kind], level)

    table = layer_table(checkpoint.n_blocks, chosen_levels(space.modules, allocation), sizes)
    return smaller_config(checkpoint, table)


def _sizes(space: SearchSpace, shapes: list[ModuleShape], allocation: Allocation) -> list[BlockSizes]:
    blocks = {shape.block: BlockSizes(shape.block, 0, 0, 0) for shape in shapes}
    for module, level in zip(space.modules, space.levels(allocation), strict=True):
        own: dict[str, Any] = {"mixer": {"mixer": True}, "tail": {}}.get(
            module.kind, {"width": level.width, "experts": level.experts}
        )
        if module.kind == "attention":
            own = {"heads": level.query_heads, "groups": level.groups}
        blocks[module.block] = replace(blocks[module.block], **own)
    return list(blocks.values())


def _only_equal_in_gguf(checkpoint: Checkpoint, space: SearchSpace, shapes: list[ModuleShape]) -> bool:
    """Whether llama.cpp runs this model, but not with a narrower MLP in one of its blocks."""
    sizes = _sizes(space, shapes, space.dense)
    if is_custom(checkpoint.config) or _why_not_gguf(checkpoint, checkpoint.config, sizes) is not None:
        return False
    first = next(each for each in sizes if each.width)
    other = [replace(each, width=each.width // 2) if each is first else each for each in sizes]
    return _why_not_gguf(checkpoint, checkpoint.config, other) is not None


def _why_not_gguf(checkpoint: Checkpoint, config: Any, sizes: list[BlockSizes]) -> str | None:
    """Why llama.cpp doesn't run a model with such blocks; None if it does."""
    numbered = [replace(each, block=number) for number, each in enumerate(sizes)]
    described = Checkpoint(checkpoint.folder, config, checkpoint.family, checkpoint.source)
    try:
        choose_layout(Reshaper(described, numbered))
    except UnsupportedError as error:
        return error.reason
    return None
