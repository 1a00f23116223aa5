"""Kinds of budget: the cost that each one bounds, and its limit.

To add one, add its name to `Bound` and its field to `BudgetSettings` in `recipe/budget.py`, its rule here, and its
option to `BUDGET` in `cli/arguments.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from darwinlm.formats.gguf.file_costs import file_costs
from darwinlm.formats.gguf.gguf_format import GGUF
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import ModuleShape, head_dim
from darwinlm.model.units.cost import CostModel, parameter_costs
from darwinlm.model.units.space import SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import BudgetError, RecipeError
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.problem import Budget
from darwinlm.steps.vocabulary.step import VocabularySettings


@dataclass(frozen=True)
class Counted:
    """What costs are counted from: no weights are read.

    Attributes:
        outside: Number of parameters that aren't pruned.
        equal: Whether all layers get the same sizes.
    """

    recipe: Sections
    checkpoint: Checkpoint
    space: SearchSpace
    shapes: list[ModuleShape]
    outside: int
    equal: bool

    @property
    def itemsize(self) -> int:
        """Bytes of a weight of the saved model."""
        return self.checkpoint.dtype.itemsize

    @property
    def cost(self) -> CostModel | None:
        """Cost of every level of every module for the recipe's budget; None if it must be measured."""
        costs = RULES[self.recipe.section(BudgetSettings).kind].costs
        return None if costs is None else costs(self)


@dataclass(frozen=True)
class Rule:
    """One kind of budget.

    Attributes:
        limit: Maximum cost of the whole model, from its costs and the bound in the recipe.
        words: Beginning of messages, from the costs, the bound and the limit.
        costs: Cost of every level of every module; None if it is measured (`latency/`).
    """

    limit: Callable[[CostModel, float], int]
    costs: Callable[[Counted], CostModel] | None = None
    words: Callable[[CostModel, float, int], str] = lambda cost, bound, limit: f"{cost.words(limit)} requested"


def _bytes(model: Counted) -> CostModel:
    """Bytes of weights, saved buffers and the KV cache."""
    modules, kv_bytes, costs = model.space.modules, _kv_bytes(model), []
    for module in modules:
        row = [level.params * model.itemsize for level in module.levels]
        if module.kind == "attention":
            cached = [level.sizes.in_even_groups().groups for level in module.levels]
            row = [size + kv_bytes(module.block, groups) for size, groups in zip(row, cached, strict=True)]
        costs.append(tuple(row))
    mixing = {module.block for module in modules if module.kind in ("attention", "mixer")}
    kept = sum(kv_bytes(block, 0) for block in range(model.checkpoint.n_blocks) if block not in mixing)
    return CostModel("bytes", tuple(costs), model.outside * model.itemsize + kept + model.checkpoint.buffer_bytes)


def _file(model: Counted) -> CostModel:
    """Bytes of the modules in a GGUF file, and of everything else in it.

    Raises RecipeError if the type isn't one of GGUF files, BudgetError if llama.cpp doesn't run the model.
    """
    checkpoint, kind = model.checkpoint, model.recipe.section(UnitsSettings).quantisation
    if kind not in GGUF.types:
        named = ", ".join(GGUF.types)
        raise RecipeError(f"budget.file: {kind} is no type of GGUF files: leave --for out, or name one of {named}")
    if GGUF.refusal(checkpoint) is not None:
        raise BudgetError(f"budget.file: llama.cpp doesn't run {checkpoint.family.model_type} models like this one")
    return file_costs(checkpoint, model.space, model.shapes, kind, equal=model.equal)


RULES: dict[str, Rule] = {
    "keep": Rule(
        lambda cost, share: int(share * cost.dense),
        lambda model: parameter_costs(model.space),
        lambda cost, share, limit: f"keeping {share:.4%} means {limit:,} of {cost.dense:,} {cost.unit}",
    ),
    "params": Rule(lambda _, params: int(params), lambda model: parameter_costs(model.space, fixed=model.outside)),
    "bytes": Rule(lambda _, size: int(size), _bytes),
    "file": Rule(lambda _, size: int(size), _file),
    "speedup": Rule(
        lambda cost, factor: int(cost.dense / factor),
        words=lambda cost, factor, limit: f"{factor:g}x means {cost.words(limit)} of {cost.words(cost.dense)}",
    ),
    "latency": Rule(lambda _, seconds: round(1e9 * seconds)),
}
"""Rules by the names of the recipe's bounds."""


def _kv_bytes(model: Counted) -> Callable[[int, int], int]:
    """Bytes of a block's keys and values in the saved model's cache, from its number of KV heads.

    A block that determines positions caches one head even without attention. Sliding windows hold fewer tokens, and
    blocks that reuse others' keys and values none.
    """
    checkpoint, budget = model.checkpoint, model.recipe.section(BudgetSettings)
    config, context, sliding = checkpoint.config, budget.context, "sliding_attention"
    window = getattr(config, "sliding_window", None)
    kind = sliding if window else "full_attention"
    kinds = list(getattr(config, "layer_types", None) or [kind] * checkpoint.n_blocks)
    columns = {shape.block: shape.sizes.head_dim for shape in model.shapes if shape.kind == "attention"}
    reusing, latent = checkpoint.family.attention.sources(config), latent_columns(config)

    def of_block(block: int, heads: int) -> int:
        kind = kinds[block]
        tokens = 0 if block in reusing else min(context, window or context) if kind == sliding else context
        heads = heads or int(kind == sliding or kind not in kinds[:block])
        elements = latent or 2 * heads * (columns.get(block) or head_dim(config, block))
        return elements * tokens * model.itemsize

    return of_block


def latent_columns(config: Any) -> int:
    """Elements per token of compressed keys and values (multi-head latent attention); 0 if they aren't compressed."""
    rank = getattr(config, "kv_lora_rank", None)
    return rank + config.qk_rope_head_dim if rank else 0


def bounded(cost: CostModel, recipe: Sections, dense: Checkpoint) -> Budget:
    """`resolve_budget`, which must remove something, unless the vocabulary is cut.

    Where quantising alone makes the file small enough, its error has the command.
    """
    settings = recipe.section(BudgetSettings)
    bound = settings.file
    if bound is not None and bound >= cost.dense and (fits := GGUF.largest(dense, bound)) is not None:
        name, size = fits
        raise BudgetError(
            f"budget.file: {cost.words(bound)} needs no pruning: the whole model has {cost.words(size)} as {name}. "
            f"Write that file: darwinlm export {shlex.quote(str(recipe.model))} --quant {name} "
            "--out model.gguf"
        )
    budget = resolve_budget(cost, settings)
    if budget.limit >= cost.dense and recipe.section(VocabularySettings).keep is None:
        raise BudgetError(
            f"budget.{settings.kind}: {cost.words(budget.limit)} is the whole model: there is nothing to prune; "
            f"the smallest is {_with_share(cost, cost.smallest)}"
        )
    return budget


def resolve_budget(cost: CostModel, budget: BudgetSettings) -> Budget:
    """Bounds from the budget of a recipe.

    An allocation may leave the recipe's tolerance unused, or one level of the finest module if that is more. In a small
    model a level can exceed the tolerance, so that no allocation would be within the bounds. Raises BudgetError if the
    budget is below the smallest or above the largest model.
    """
    if not cost.costs:
        raise BudgetError("the model has no attention and no MLP that could be pruned")
    rule, bound = RULES[budget.kind], getattr(budget, budget.kind)
    limit = rule.limit(cost, bound)
    beginning = f"budget.{budget.kind}: {rule.words(cost, bound, limit)}"
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


def _with_share(cost: CostModel, amount: int) -> str:
    if cost.unit == "block parameters":
        return f"{amount:,} ({amount / cost.dense:.4%})"
    times = f" ({cost.dense / amount:.2f}x)" if cost.unit == "nanoseconds" and amount else ""
    return cost.words(amount) + times
