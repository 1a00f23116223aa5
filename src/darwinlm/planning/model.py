"""Sizes of a model from its configuration alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import astuple
from functools import cached_property
from typing import Any

import torch

from darwinlm.compute import DTYPES, saved_dtype
from darwinlm.errors import RecipeError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.planning.counted import Passes, count_passes
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.search.problem.cost import CostModel
from darwinlm.search.problem.problem import Budget, counted_costs, resolve_budget, space_of
from darwinlm.vocabulary.choose import kept_size


class Sizes:
    """Sizes of a model and a recipe; operations and bytes are counted when they are asked for.

    The checkpoint's weights aren't read. Each of the processes that share the work has its own device.

    Attributes:
        skeleton: The dense model without data.
        shapes: Shapes of all modules.
        space: Modules and their levels.
        cut: Shapes of modules with several levels.
        params: Number of parameters of the dense model with the recipe's vocabulary; a tied embedding counts once.
        blocks: Number of parameters in its blocks.
        block: Number of parameters of the largest block.
        outside: Number of parameters outside its blocks: embedding, head, last norm.
        depth: Number of blocks.
        width: Residual width.
        vocabulary: Size of the vocabulary that the recipe keeps.
        linear_head: Whether logits are a linear function of the head's input (`search/evaluate/dense_side.py`).
        saved: Bytes of one saved weight; those of float32 if the configuration has no type.
        head: Operations of one token's logits.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, processes: int = 1) -> None:
        self.checkpoint, self.recipe, self.processes = checkpoint, recipe, processes
        self.skeleton = checkpoint.skeleton()
        names = self.skeleton.named_parameters(remove_duplicate=False)
        self.shapes = module_shapes(checkpoint, {name: tuple(parameter.shape) for name, parameter in names})
        self.space = space_of(recipe, checkpoint, self.shapes)
        modules = zip(self.shapes, self.space.modules, strict=True)
        self.cut = [shape for shape, module in modules if len(module.levels) > 1]
        config = checkpoint.config
        self.width, rows = int(config.hidden_size), int(config.vocab_size)
        self.vocabulary = kept_size(recipe.vocabulary or 1, rows)
        self.params: int = sum(
            parameter.numel() // rows * self.vocabulary
            if parameter.shape[:1] == (rows,) and not name.startswith(f"{checkpoint.family.layers}.")
            else parameter.numel()
            for name, parameter in self.skeleton.named_parameters()
        )
        self.blocks = self.space.params(self.space.dense)
        blocks = self.skeleton.get_submodule(checkpoint.family.layers)
        self.block = max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
        self.outside, self.depth = self.params - self.blocks, checkpoint.n_blocks
        self.linear_head = not getattr(config, "final_logit_softcapping", None)
        self.saved = int(getattr(checkpoint.dtype, "itemsize", 4))
        self.head = 2.0 * self.width * self.vocabulary
        self._counted: dict[tuple[Any, ...], Passes] = {}

    def with_settings(self, assignments: Sequence[str], processes: int | None = None) -> Sizes:
        """The same model with other settings, except units and budget."""
        other = copy.copy(self)
        other.recipe, other.processes = load_recipe(self.recipe, assignments, {}), processes or self.processes
        return other

    @cached_property
    def cost(self) -> CostModel:
        """Costs in the unit of the budget. Raises RecipeError if they would have to be measured."""
        budget = self.recipe.budget
        if budget.kind in ("speedup", "latency"):
            raise RecipeError(
                f"budget.{budget.kind} is measured on the device when the run starts: plan with keep, params or bytes"
            )
        dtype = saved_dtype(self.recipe, self.checkpoint.dtype)
        return counted_costs(budget, self.checkpoint, self.space, self.shapes, outside=self.outside, dtype=dtype)

    @cached_property
    def budget(self) -> Budget:
        """Bounds on the modules' cost. Raises BudgetError."""
        return resolve_budget(self.cost, self.recipe.budget)

    @property
    def kept(self) -> float:
        """Largest share of block parameters to keep; for a budget in bytes, share of the modules' bytes."""
        return self.budget.upper / (self.cost.dense - self.cost.fixed)

    @property
    def kept_blocks(self) -> tuple[int, int]:
        """Smallest and largest number of block parameters to keep; approximate for a budget in bytes."""
        if self.cost.unit != "bytes":
            return self.budget.lower, self.budget.upper
        most = self.kept * self.blocks
        return round(most * self.budget.lower / self.budget.upper), round(most)

    @property
    def small(self) -> int:
        """Largest number of parameters of the smaller model."""
        return self.kept_blocks[1] + self.outside

    def bytes_of(self, kept: float = 1.0) -> float:
        """Bytes of a model in passes, with a share of its blocks' parameters."""
        return (kept * self.blocks + self.outside) * self.size

    @property
    def kind(self) -> str:
        """Element type of products in passes."""
        return "float32" if self.recipe.compute.dtype == "float32" else "bfloat16"

    @property
    def size(self) -> int:
        """Bytes of a number in forward passes."""
        return DTYPES[self.kind].itemsize

    @property
    def pass_tokens(self) -> int:
        """Tokens in one pass."""
        return max(self.recipe.compute.batch_tokens, self.recipe.text.sequence_length)

    def whole(self, tokens: int) -> int:
        """Tokens in whole sequences."""
        return -(-tokens // self.recipe.text.sequence_length) * self.recipe.text.sequence_length

    @property
    def forward(self) -> float:
        """Operations of one token's pass through all dense blocks."""
        return self.passes().flops

    def passes(self, kept: float = 1.0, *, backward: bool = False, recovery: bool = False) -> Passes:
        """Costs of one token in the blocks.

        `kept` is the share of the widths that the blocks keep. In recovery, weights and stream are float32, whatever
        the type of products is.
        """
        length, dtype, low = self.recipe.text.sequence_length, DTYPES[self.kind], None
        if recovery:
            dtype, low = torch.float32, None if dtype == torch.float32 else dtype
        key = (length, dtype, low, backward, kept != 1)
        if key not in self._counted:
            self._counted[key] = count_passes(self.checkpoint, self.skeleton, *key)
        if kept == 1:
            return self._counted[key]
        none, whole = self._counted[key], self.passes(backward=backward, recovery=recovery)
        return Passes(*(a + kept * (b - a) for a, b in zip(astuple(none), astuple(whole), strict=True)))

    def activations(self, kept: float = 1.0, *, recovery: bool = False, checkpointing: bool = False) -> float:
        """Bytes of one token in a forward and backward pass.

        With checkpointing, only the stream between blocks is saved, and blocks are recomputed. Others as in `passes`.
        """
        one = self.passes(kept, backward=True, recovery=recovery)
        if checkpointing:
            return self.depth * self.width * (4 if recovery else self.size) + one.peak
        return one.saved + max(one.peak - one.saved / self.depth, 0.0)
