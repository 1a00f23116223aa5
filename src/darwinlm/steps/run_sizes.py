"""Sizes of a model under a recipe, from its configuration alone."""

from __future__ import annotations

from functools import cached_property
from math import prod

from darwinlm.formats.resolve import is_converted
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import ModuleShape, module_shapes
from darwinlm.model.units.space import space_of
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.compute import DTYPES
from darwinlm.runtime.compute_settings import GPU_TOKENS
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.bounds import bounded, cost_of, counted
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.first import first_layers
from darwinlm.steps.budget.kinds import Speedup
from darwinlm.steps.search.search_amounts import SearchAmounts
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.choose import kept_size
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings

LEAST_OUTSIDE = 0.1
"""Share of the parameters outside the blocks that stays if the run chooses the size of the vocabulary, for the largest
possible blocks."""


class RunSizes:
    """Sizes for one of several processes that share the work.

    With a `smaller` model that exists already, the blocks to keep are its own, and the dense model has its vocabulary.

    Attributes:
        cut: Shapes of modules with several levels.
        params: Number of parameters of the dense model with the recipe's vocabulary; a tied embedding counts once.
        original_params: The same with its own vocabulary.
        blocks: Number of parameters in its blocks.
        block: Number of parameters of the largest one.
        outside: Number of parameters outside its blocks: embedding, head, last norm.
        channels: Channels of the stream and of the widest attention and MLP, of which a token uses its own experts.
        saved: Bytes of a weight of the model that the run saves.
        rows: Number of rows of the original's embedding.
        stored: Bytes of a weight of the dense model on the disk: a GGUF file is converted to float32.
        pass_tokens: Tokens in one pass.
        fitted: Whether the run chooses the size of the vocabulary; until then, it counts as a whole here.
    """

    def __init__(
        self, checkpoint: Checkpoint, recipe: Sections, processes: int = 1, *, smaller: Checkpoint | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.recipe = recipe
        self.processes = processes
        self.smaller = smaller
        text, vocabulary = recipe.section(TextSettings), recipe.section(VocabularySettings)
        kept_tokens = vocabulary.keep if smaller is None else None
        self.fitted = vocabulary.auto and smaller is None
        self.shapes = module_shapes(checkpoint)
        self.space = space_of(recipe.section(UnitsSettings), checkpoint, self.shapes)
        modules = zip(self.shapes, self.space.modules, strict=True)
        self.cut = [shape for shape, module in modules if len(module.levels) > 1]
        self.width, rows = int(checkpoint.config.hidden_size), int(checkpoint.config.vocab_size)
        self.rows = rows
        self.vocabulary, self.depth = kept_size(kept_tokens or 1, rows), checkpoint.n_blocks
        self.blocks = self.space.params(self.space.dense)
        self.block = max(self.params_of(block) for block in range(self.depth))
        self.params = self.original_params = 0
        for name, parameter in checkpoint.outline.named_parameters():
            in_blocks = name.startswith(f"{checkpoint.family.layers}.")
            self.original_params += parameter.numel()
            if parameter.shape[:1] == (rows,) and not in_blocks:
                self.params += parameter.numel() // rows * self.vocabulary
            else:
                self.params += parameter.numel()
        self.outside = self.params - self.blocks
        widths = {shape.kind: 0 for shape in self.shapes}
        for shape in self.shapes:
            widths[shape.kind] = max(widths[shape.kind], shape.sizes.width * max(shape.chosen, 1))
        self.channels = self.width + sum(widths.values())
        self.dtype = DTYPES["float32" if recipe.compute.dtype == "float32" else "bfloat16"]
        self.size, self.saved = self.dtype.itemsize, checkpoint.dtype.itemsize
        self.stored = 4 if is_converted(checkpoint.source) else self.saved
        self.pass_tokens = max(recipe.compute.batch_tokens or GPU_TOKENS, text.sequence_length)

    def params_of(self, block: int) -> int:
        """Number of parameters of a block."""
        blocks = self.checkpoint.outline.get_submodule(self.checkpoint.family.layers)
        return sum(parameter.numel() for parameter in blocks[block].parameters())

    @cached_property
    def kept_blocks(self) -> tuple[int, int]:
        """Smallest and largest number of block parameters to keep; approximate for a budget in bytes.

        A budget in time is measured in the run; an equal share of the blocks, or half of them, stands for it. Raises
        BudgetError if the budget is too small or too large.
        """
        if self.smaller is not None:
            blocks = self.smaller.outline.get_submodule(self.smaller.family.layers)
            params = sum(parameter.numel() for parameter in blocks.parameters())
            return params, params
        bound = self.recipe.section(BudgetSettings).bound
        layers = self.recipe.section(SearchAmounts)
        equal = layers.layers == "equal" or not layers.narrows
        model = counted(self.recipe, self.checkpoint, self.space, self.shapes, outside=self.outside, equal=equal)
        cost = cost_of(self.recipe, model)
        if cost is None:
            return 0, round(self.blocks / (bound.value if isinstance(bound, Speedup) else 2))
        if self.fitted:
            most = self.params * bound.value / cost.dense - LEAST_OUTSIDE * self.outside
            return 0, min(round(most), self.blocks)
        bounds = bounded(self.recipe, cost, model)
        if not layers.narrows:
            params = self.space.params(first_layers(self.space, cost, bounds.limit))
            return params, params
        share = self.blocks / (cost.dense - cost.fixed)  # 1 for a budget in parameters
        return round(share * bounds.lower), round(share * bounds.upper)

    @property
    def saved_params(self) -> int:
        """Largest number of parameters of the smaller model."""
        kept = self.kept_blocks[1]
        timed = self.recipe.section(BudgetSettings).timed  # then nothing is known of the vocabulary
        return kept + round(LEAST_OUTSIDE * self.outside) if self.fitted and not timed else kept + self.outside

    @property
    def kept(self) -> float:
        """Largest share of block parameters to keep."""
        return self.kept_blocks[1] / self.blocks

    @property
    def whole(self) -> bool:
        """Whether all blocks fit into the budget, beside a smaller vocabulary."""
        return self.smaller is None and self.vocabulary < self.rows and self.kept_blocks[1] >= self.blocks

    def operations(self, tokens: float, kept: float = 1.0, *, blocks: float = 1.0, heads: float = 0.0) -> float:
        """Operations of passes of tokens through a model. A backward pass counts as two."""
        return tokens * (blocks * kept * self.through + heads * 2.0 * self.width * self.vocabulary)

    @cached_property
    def through(self) -> float:
        """Operations of one token's pass through all blocks: products with weights, and attention."""
        return sum(map(self.through_module, self.shapes))

    def through_module(self, shape: ModuleShape) -> float:
        """Operations of one module; a token passes through its own experts only."""
        share = shape.chosen / shape.sizes.experts if shape.sizes.experts else 1.0
        matrices = [size for size in shape.tensors.values() if len(size) > 1]
        weights = sum(prod(size) * (share if len(size) == 3 else 1.0) for size in matrices)
        length = self.recipe.section(TextSettings).sequence_length
        attention = 4.0 * length * shape.sizes.width if shape.kind == "attention" else 0.0
        return 2.0 * weights + attention
