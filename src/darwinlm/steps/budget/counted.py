"""Costs that are counted without reading weights: bytes of the saved model, and of its GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.formats.gguf.file_costs import file_costs as costs_in_file
from darwinlm.formats.gguf.gguf_format import GGUF
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import ModuleShape, head_dim
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import SearchSpace
from darwinlm.runtime.errors import BudgetError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Counted:
    """What costs are counted from; weights aren't read.

    Attributes:
        outside: Number of parameters that aren't pruned.
        equal: Whether all layers get the same sizes.
        context: Tokens in the KV cache.
        quantisation: Type of the GGUF file.
        model: Name of the model as the user gave it.
        removed_tokens: Number of tokens that were removed from the vocabulary, whose rows `outside` doesn't count.
    """

    checkpoint: Checkpoint
    space: SearchSpace
    shapes: list[ModuleShape]
    outside: int
    equal: bool
    context: int
    quantisation: str | None
    model: str
    removed_tokens: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of a weight of the saved model."""
        return self.checkpoint.dtype.itemsize


def byte_costs(model: Counted) -> CostModel:
    """Bytes of weights, saved buffers and the KV cache."""
    modules = model.space.modules
    kv_bytes = _kv_bytes(model)
    costs: list[tuple[int, ...]] = []
    for module in modules:
        row = [level.params * model.itemsize for level in module.levels]
        if module.kind == "attention":
            groups = [level.sizes.in_even_groups().groups for level in module.levels]
            row = [size + kv_bytes(module.block, count) for size, count in zip(row, groups, strict=True)]
        costs.append(tuple(row))
    mixing = {module.block for module in modules if module.kind in ("attention", "mixer")}
    cached = sum(kv_bytes(block, 0) for block in range(model.checkpoint.n_blocks) if block not in mixing)
    fixed = (model.outside + sum(model.space.beside.values())) * model.itemsize
    left = tuple((places, count * model.itemsize) for places, count in model.space.left)
    return CostModel("bytes", tuple(costs), fixed + cached + model.checkpoint.buffer_bytes, left=left)


def file_costs(model: Counted) -> CostModel:
    """Bytes of the modules in a GGUF file, and of everything else in it.

    Raises RecipeError if the type isn't one of GGUF files, BudgetError if llama.cpp doesn't run the model.
    """
    checkpoint, kind = model.checkpoint, model.quantisation
    if kind not in GGUF.types:
        names = ", ".join(GGUF.types)
        raise RecipeError(f"budget.file: {kind} is no type of GGUF files: leave --for out, or name one of {names}")
    if GGUF.refusal(checkpoint) is not None:
        raise BudgetError(f"budget.file: llama.cpp doesn't run {checkpoint.family.model_type} models like this one")
    return costs_in_file(
        checkpoint, model.space, model.shapes, kind, equal=model.equal, removed_tokens=model.removed_tokens
    )


def _kv_bytes(model: Counted) -> Callable[[int, int], int]:
    """Bytes of a block's keys and values in the saved model's cache, from its number of KV heads.

    A block that determines positions caches one head even without attention. Sliding windows hold fewer tokens, and
    blocks that reuse others' keys and values none.
    """
    checkpoint, context = model.checkpoint, model.context
    config, sliding = checkpoint.config, "sliding_attention"
    window = getattr(config, "sliding_window", None)
    default_kind = sliding if window else "full_attention"
    kinds = list(getattr(config, "layer_types", None) or [default_kind] * checkpoint.n_blocks)
    columns = {shape.block: shape.sizes.head_dim for shape in model.shapes if shape.kind == "attention"}
    reusing, latent = checkpoint.family.attention.sources(config), latent_columns(config)

    def tokens_in(block: int) -> int:
        if block in reusing:
            return 0
        return min(context, window or context) if kinds[block] == sliding else context

    def of_block(block: int, heads: int) -> int:
        kind, tokens = kinds[block], tokens_in(block)
        heads = heads or int(kind == sliding or kind not in kinds[:block])
        elements = latent or 2 * heads * (columns.get(block) or head_dim(config, block))
        return elements * tokens * model.itemsize

    return of_block


def latent_columns(config: PreTrainedConfig) -> int:
    """Elements per token of compressed keys and values (multi-head latent attention); 0 if they aren't compressed."""
    rank = getattr(config, "kv_lora_rank", None)
    return int(rank + config.qk_rope_head_dim) if rank else 0
