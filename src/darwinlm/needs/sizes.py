"""Sizes of a model from its configuration alone."""

from __future__ import annotations

import copy
from functools import cached_property

import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.needs.counted import Passes, count_passes
from darwinlm.recipe import Recipe
from darwinlm.runtime.compute import DTYPES
from darwinlm.search.problem.budgets import Counted, bounded
from darwinlm.search.problem.problem import space_of
from darwinlm.vocabulary.choose import kept_size

AROUND = 20
"""Bytes that a block keeps for the backward pass for each element of the stream, besides those in its sub-layers.
Counted for Llama and Qwen2 in bfloat16, 2026-11-27; 8 to 38 in other families."""


class Sizes:
    """Sizes of a model and a recipe; operations and bytes are counted when they are asked for.

    The checkpoint's weights aren't read. Each of the processes that share the work has its own device.

    Attributes:
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
        saved: Bytes of one saved weight; those of float32 if the configuration has no type.
        head: Operations of one token's logits.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, processes: int = 1) -> None:
        self.checkpoint, self.recipe, self.processes = checkpoint, recipe, processes
        self._skeleton = checkpoint.skeleton()
        parameters = dict(self._skeleton.named_parameters(remove_duplicate=False))
        self.shapes = module_shapes(checkpoint, {name: tuple(each.shape) for name, each in parameters.items()})
        self.space = space_of(recipe, checkpoint, self.shapes)
        modules = zip(self.shapes, self.space.modules, strict=True)
        self.cut = [shape for shape, module in modules if len(module.levels) > 1]
        self.width, rows = int(checkpoint.config.hidden_size), int(checkpoint.config.vocab_size)
        self.vocabulary = kept_size(recipe.vocabulary or 1, rows)
        blocks = self._skeleton.get_submodule(checkpoint.family.layers)
        self.block = max(sum(each.numel() for each in block.parameters()) for block in blocks)
        self.blocks = self.space.params(self.space.dense)
        self.params: int = sum(
            each.numel() // rows * self.vocabulary
            if each.shape[:1] == (rows,) and not name.startswith(f"{checkpoint.family.layers}.")
            else each.numel()
            for name, each in self._skeleton.named_parameters()
        )
        self.outside, self.depth = self.params - self.blocks, checkpoint.n_blocks
        self.saved = checkpoint.dtype.itemsize
        self.head = 2.0 * self.width * self.vocabulary
        self._counted: dict[tuple[int, torch.dtype, bool], Passes] = {}

    def with_recipe(self, recipe: Recipe, processes: int | None = None) -> Sizes:
        """The same model with other settings, except units and budget."""
        other = copy.copy(self)
        other.recipe, other.processes = recipe, processes or self.processes
        return other

    @cached_property
    def kept_blocks(self) -> tuple[int, int]:
        """Smallest and largest number of block parameters to keep; approximate for a budget in bytes.

        A budget in time is measured in the run; an equal share of the blocks, or half of them, stands for it. Raises
        BudgetError if the budget is too small or too large.
        """
        budget, equal = self.recipe.budget, self.recipe.search.layers == "equal"
        cost = Counted(self.recipe, self.checkpoint, self.space, self.shapes, self.outside, equal).cost
        if cost is None:
            return 0, round(self.blocks / (budget.speedup or 2))
        bounds = bounded(cost, self.recipe, self.checkpoint)
        share = self.blocks / (cost.dense - cost.fixed)  # 1 for a budget in parameters
        return round(share * bounds.lower), round(share * bounds.upper)

    @property
    def kept(self) -> float:
        """Largest share of block parameters to keep."""
        return self.kept_blocks[1] / self.blocks

    @property
    def small(self) -> int:
        """Largest number of parameters of the smaller model."""
        return self.kept_blocks[1] + self.outside

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

    def passes(self, *, backward: bool = False) -> Passes:
        """Costs of one token in the dense blocks."""
        key = (self.recipe.text.sequence_length, DTYPES[self.kind], backward)
        if key not in self._counted:
            self._counted[key] = count_passes(self.checkpoint, self._skeleton, *key[:2], backward=backward)
        return self._counted[key]

    def activations(self, stream: int) -> float:
        """Bytes of one token in a forward and backward pass of the smaller model.

        With gradient checkpointing, only the stream between blocks is saved, with `stream` bytes for each element, and
        blocks are recomputed. 0 saves everything.
        """
        dense = self.passes(backward=True)
        around = min(AROUND * self.width * self.depth, dense.saved)
        saved = around + self.kept * (dense.saved - around)
        beside = max(dense.peak - dense.saved / self.depth, 0.0)
        return beside + (self.depth * self.width * stream + saved / self.depth if stream else saved)
