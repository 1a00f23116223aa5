"""The search problem: the space of allocations, their cost, and the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from darwinlm.database.levels import module_levels
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import ModuleShape, head_dim
from darwinlm.recipe import BudgetSettings, Recipe
from darwinlm.search.problem.budget import Budget
from darwinlm.search.problem.cost import CostModel, KvCache, byte_costs, parameter_costs
from darwinlm.search.problem.space import SearchSpace


@dataclass(frozen=True)
class Problem:
    """The search space, the cost of allocations in the unit of the budget, and the budget.

    `outside` is the number of parameters that aren't pruned.
    """

    space: SearchSpace
    cost: CostModel
    budget: Budget
    outside: int = 0

    def allows(self, allocation: Sequence[int]) -> bool:
        """Whether the cost of an allocation lies within the budget's bounds."""
        return self.budget.allows(self.cost.of(allocation) - self.cost.fixed)


def space_of(recipe: Recipe, checkpoint: Checkpoint, shapes: list[ModuleShape]) -> SearchSpace:
    """Modules and levels. Raises RecipeError if the units don't fit the model."""
    return SearchSpace(tuple(module_levels(checkpoint.family, shape, recipe.units) for shape in shapes))


def counted_costs(
    settings: BudgetSettings,
    checkpoint: Checkpoint,
    space: SearchSpace,
    shapes: list[ModuleShape],
    *,
    outside: int,
    dtype: torch.dtype,
) -> CostModel:
    """Costs in parameters or bytes, which need no measurement.

    The budget's kind determines the unit. Weights aren't read.
    """
    if settings.kind == "keep":
        return parameter_costs(space)
    if settings.kind == "params":
        return parameter_costs(space, fixed=outside)
    cache = _cache(settings, checkpoint, shapes, dtype)
    buffers = checkpoint.buffer_bytes
    return byte_costs(space, outside=outside, itemsize=dtype.itemsize, cache=cache, buffers=buffers)


def _cache(settings: BudgetSettings, checkpoint: Checkpoint, shapes: list[ModuleShape], dtype: torch.dtype) -> KvCache:
    """Sizes of the saved model's KV cache, including sliding windows."""
    config = checkpoint.config
    n_blocks = checkpoint.n_blocks
    kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = list(getattr(config, "layer_types", None) or [kind] * n_blocks)
    window = getattr(config, "sliding_window", None) or settings.context
    columns = {block: head_dim(config, block) for block in range(n_blocks)}
    columns |= {shape.block: shape.head_dim for shape in shapes if shape.kind == "attention"}
    sliding, reusing = "sliding_attention", checkpoint.family.attention.sources(config)
    return KvCache(
        head_dim=[columns[block] for block in range(n_blocks)],
        tokens=[
            0 if block in reusing else min(settings.context, window) if kind == sliding else settings.context
            for block, kind in enumerate(kinds)
        ],
        batch=settings.batch,
        latent=latent_columns(config),
        itemsize=dtype.itemsize,
        counters=frozenset(i for i, kind in enumerate(kinds) if kind == sliding or kind not in kinds[:i]),
    )


def latent_columns(config: Any) -> int:
    """Elements per token of compressed keys and values (multi-head latent attention); 0 if they aren't compressed."""
    rank = getattr(config, "kv_lora_rank", None)
    return rank + config.qk_rope_head_dim if rank else 0
