"""Bytes of every level of every module in a GGUF file, for a budget on its size."""

from __future__ import annotations

from collections.abc import Sequence

from darwinlm.formats.gguf.file_sizes import FileSizes, file_tensors, header_bytes, joins_projections
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import SearchSpace


def file_costs(
    checkpoint: Checkpoint,
    space: SearchSpace,
    shapes: Sequence[ModuleShape],
    quantisation: str,
    *,
    equal: bool,
    removed_tokens: int = 0,
) -> CostModel:
    """Bytes of the modules of smaller models in a file, and of everything else in it.

    Args:
        checkpoint: The dense model.
        space: Its modules and their levels.
        shapes: Shapes of its modules.
        quantisation: One of the types of files.
        equal: Whether the smaller models have equal layers.
        removed_tokens: Number of tokens that will be removed from the vocabulary; the others are taken to be as long.

    Raises:
        ExportError: llama.cpp has no tokenizer of the model's kind.
    """
    sizes = FileSizes(checkpoint, quantisation, joins_projections(checkpoint, equal=equal))
    dense = {name: tuple(weight.shape) for name, weight in checkpoint.outline.named_parameters()}
    inside = f"{checkpoint.family.layers}."
    outside = {name: size for name, size in file_tensors(checkpoint, dense).items() if not name.startswith(inside)}
    rows = int(checkpoint.config.vocab_size)
    kept = rows - removed_tokens
    outside = {name: (kept, *size[1:]) if size[:1] == (rows,) else size for name, size in outside.items()}
    by_place = {shape.place: shape for shape in shapes}
    costs = tuple(
        tuple(sizes.module(by_place[module.place], level.sizes.in_even_groups()) for level in module.levels)
        for module in space.modules
    )
    return CostModel("bytes", costs, header_bytes(checkpoint) * kept // rows + sizes.all_tensors(outside))
