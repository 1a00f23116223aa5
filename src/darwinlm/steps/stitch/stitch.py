"""Build the physically smaller model of an allocation (DarwinLM §3.2); equal layers use the family's class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.layer_sizes import Place
from darwinlm.model.surgery.layer_table import layer_table
from darwinlm.model.surgery.shrink import shrink_tensors, split_block
from darwinlm.model.surgery.smaller_config import smaller_config
from darwinlm.model.surgery.smaller_model import described, fill
from darwinlm.model.units.levels import Level
from darwinlm.model.units.modules import ModuleReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def stitch(
    database: ModuleReader, allocation: tuple[int, ...], keep: Callable[[Tensor], Tensor] = torch.clone
) -> PreTrainedModel:
    """The smaller model of an allocation, in the checkpoint's types; `keep` puts every tensor in its place."""
    smaller, weights = stitched_blocks(database, allocation)
    model, prefix = smaller.skeleton(), database.checkpoint.block_prefix
    tensors = {name: keep(database.checkpoint.read(name)[""]) for name in database.checkpoint.names_outside_blocks()}
    for block in range(smaller.n_blocks):
        tensors |= {prefix(block) + name: keep(tensor) for name, tensor in weights(block).items()}
    missing, _ = fill(model, tensors)
    assert not missing, f"stitching left {missing} without weights"
    return model.eval().requires_grad_(requires_grad=False)


def stitched_blocks(
    database: ModuleReader, allocation: tuple[int, ...]
) -> tuple[Checkpoint, Callable[[int], dict[str, Tensor]]]:
    """The smaller model of an allocation, to be read block by block.

    Returns a checkpoint with its configuration and everything outside its blocks, and the weights of a block by name in
    it.
    """
    checkpoint = database.checkpoint
    pairs = zip(database.modules, allocation, strict=True)
    chosen = {module.place: module.levels[index] for module, index in pairs}
    sizes = {place: database.sizes(*place, level) for place, level in chosen.items()}
    table = layer_table(checkpoint.family, checkpoint.n_blocks, sizes)
    smaller = described(smaller_config(checkpoint, table), checkpoint)
    return smaller, lambda block: dict(_block_tensors(database, chosen, block))


def _block_tensors(database: ModuleReader, chosen: Mapping[Place, Level], block: int) -> Iterator[tuple[str, Tensor]]:
    family, inside = database.checkpoint.family, database.tensors(block)
    if family.tail is not None and family.tail.scale in inside:
        yield family.tail.scale, inside[family.tail.scale]
    for kind in family.kinds:
        part = family.module(kind)
        level = chosen.get((block, kind))
        if level is None or level.sizes.width == 0:
            continue
        tensors, norms = split_block(inside, part)
        units = database.kept(block, kind, level)
        for name, tensor in shrink_tensors(family, database.shapes[block, kind], tensors, units).items():
            yield f"{part.prefix}{name}", tensor
        yield from norms.items()
