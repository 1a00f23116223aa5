"""The search problem: the space of allocations, their cost, and the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from darwinlm.database.levels import module_levels
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import ModuleShape, head_dim
from darwinlm.recipe import BudgetSettings, Recipe
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.problem.cost import CostModel, Unit, amount_words, byte_costs, parameter_costs
from darwinlm.search.problem.space import SearchSpace

if TYPE_CHECKING:
    from darwinlm.search.propose.equal import EqualLayers


@dataclass(frozen=True)
class Budget:
    """Bounds on the total cost of the modules; from the lower one on, the budget counts as used.

    `fixed` is the cost of everything that isn't pruned, not included in the bounds.
    """

    lower: int
    upper: int
    unit: Unit = "block parameters"
    fixed: int = 0

    def allows(self, cost: int) -> bool:
        """True when the modules' cost lies within the bounds."""
        return self.lower <= cost <= self.upper

    @property
    def limit(self) -> int:
        """Maximum cost of the whole model."""
        return self.upper + self.fixed

    @property
    def words(self) -> str:
        """The bounds for messages, in terms of the whole model."""
        low, high = self.lower + self.fixed, self.upper + self.fixed
        if self.unit in ("block parameters", "parameters"):
            return f"{low:,} and {high:,} {self.unit}"
        return f"{amount_words(low, self.unit)} and {amount_words(high, self.unit)}"


@dataclass(frozen=True)
class Problem:
    """The search space, the cost of allocations in the unit of the budget, and the budget.

    `outside` is the number of parameters that aren't pruned. `equal` restricts the allocations to equal layers; None
    allows all.
    """

    space: SearchSpace
    cost: CostModel
    budget: Budget
    outside: int = 0
    equal: EqualLayers | None = None


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
    kv_bytes, buffers = _kv_bytes(settings, checkpoint, shapes, dtype), checkpoint.buffer_bytes
    return byte_costs(space, outside=outside, itemsize=dtype.itemsize, kv_bytes=kv_bytes, buffers=buffers)


def _kv_bytes(
    settings: BudgetSettings, checkpoint: Checkpoint, shapes: list[ModuleShape], dtype: torch.dtype
) -> list[Callable[[int], int]]:
    """For each block the bytes of its keys and values in the saved model's cache, from its number of KV heads.

    A block that determines positions caches one head even without attention. Sliding windows hold fewer tokens, and
    blocks that reuse others' keys and values none.
    """
    config, context, sliding = checkpoint.config, settings.context, "sliding_attention"
    window = getattr(config, "sliding_window", None)
    kind = sliding if window else "full_attention"
    kinds = list(getattr(config, "layer_types", None) or [kind] * checkpoint.n_blocks)
    columns = {shape.block: shape.head_dim for shape in shapes if shape.kind == "attention"}
    reusing, latent = checkpoint.family.attention.sources(config), latent_columns(config)

    def of_block(block: int, heads: int) -> int:
        kind = kinds[block]
        tokens = 0 if block in reusing else min(context, window or context) if kind == sliding else context
        heads = heads or int(kind == sliding or kind not in kinds[:block])
        elements = latent or 2 * heads * (columns.get(block) or head_dim(config, block))
        return elements * tokens * settings.batch * dtype.itemsize

    return [partial(of_block, block) for block in range(checkpoint.n_blocks)]


def latent_columns(config: Any) -> int:
    """Elements per token of compressed keys and values (multi-head latent attention); 0 if they aren't compressed."""
    rank = getattr(config, "kv_lora_rank", None)
    return rank + config.qk_rope_head_dim if rank else 0


def resolve_budget(cost: CostModel, budget: BudgetSettings) -> Budget:
    """Bounds from the budget of a recipe.

    An allocation may leave the recipe's tolerance unused, or one level of the finest module if that is more. In a small
    model a level can exceed the tolerance, so that no allocation would be within the bounds. Raises BudgetError if the
    budget is below the smallest or above the largest model.
    """
    if not cost.costs:
        raise BudgetError("the model has no attention and no MLP that could be pruned")
    limit, beginning = _limit(cost, budget)
    upper = limit - cost.fixed
    if limit < cost.smallest:
        raise BudgetError(
            f"{beginning}, less than the smallest model that the units allow: {_with_share(cost, cost.smallest)}; the "
            f"largest is {_with_share(cost, cost.dense)}"
        )
    if limit > cost.dense:
        raise BudgetError(
            f"{beginning}, more than the whole model: there is nothing to prune; the smallest is "
            f"{_with_share(cost, cost.smallest)}, the largest {_with_share(cost, cost.dense)}"
        )
    unused = max(limit - int(limit * (1 - budget.tolerance)), cost.finest_step)
    # At least one module must remain.
    return Budget(max(upper - unused, cost.smallest - cost.fixed), upper, cost.unit, cost.fixed)


def _limit(cost: CostModel, budget: BudgetSettings) -> tuple[int, str]:
    """Maximum cost of the whole model, and the beginning of messages about it."""
    if budget.keep is not None:
        limit = int(budget.keep * cost.dense)
        return limit, f"budget.keep: keeping {budget.keep:.4%} means {limit:,} of {cost.dense:,} block parameters"
    if budget.speedup is not None:
        limit = int(cost.dense / budget.speedup)
        return limit, f"budget.speedup: {budget.speedup:g}x means {cost.words(limit)} of {cost.words(cost.dense)}"
    if budget.latency is not None:
        limit = round(1e9 * budget.latency)
    else:
        limit = int(budget.params if budget.params is not None else budget.bytes or 0)
    return limit, f"budget.{budget.kind}: {cost.words(limit)} requested"


def _with_share(cost: CostModel, amount: int) -> str:
    if cost.unit == "block parameters":
        return f"{amount:,} ({amount / cost.dense:.4%})"
    times = f" ({cost.dense / amount:.2f}x)" if cost.unit == "nanoseconds" and amount else ""
    return cost.words(amount) + times
