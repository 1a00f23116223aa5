"""Build the physically smaller model of an allocation (DarwinLM §3.2); equal layers use the family's class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.formats.transformers.saved import save_around, save_index, save_shard
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.layer_sizes import Place
from darwinlm.model.surgery.layer_table import layer_table
from darwinlm.model.surgery.shrink import shrink_tensors, split_block
from darwinlm.model.surgery.smaller_config import smaller_config
from darwinlm.model.surgery.smaller_model import described, fill
from darwinlm.model.units.levels import Level
from darwinlm.model.units.modules import ModuleReader
from darwinlm.runtime import parallel
from darwinlm.steps.database.sharing import block_owner

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


def write_stitched(database: ModuleReader, allocation: tuple[int, ...], folder: Path) -> None:
    """Write the smaller model of an allocation: a shard for each block and one for the rest, then the index.

    Of several processes, the owner of a block cuts and writes it, and the first one writes the rest. The files don't
    depend on their number. Finished shards of an interrupted run are kept; only the index makes the folder a model.

    Raises:
        NumericsError: A weight isn't finite.
        StorageError: The disk is full.
    """
    smaller, weights = stitched_blocks(database, allocation)
    checkpoint, model = database.checkpoint, smaller.skeleton()
    layers = f"{checkpoint.family.layers}."
    blocks = list(model.get_submodule(checkpoint.family.layers).children())
    filled = [number for number, block in enumerate(blocks) if block.state_dict()]
    first, *shards = (
        folder / f"model-{part + 1:05d}-of-{len(filled) + 1:05d}.safetensors" for part in range(len(filled) + 1)
    )
    outputs = int(checkpoint.config.hidden_size)
    owner = block_owner(module_shapes(checkpoint), database.units, outputs, checkpoint.n_blocks, parallel.size())
    with parallel.agree():
        if parallel.is_main() and not first.exists():
            fill(model, {name: checkpoint.read(name)[""] for name in checkpoint.names_outside_blocks()})
            outside = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(layers)}
            save_around(model, _complete(outside), first)
        for number, shard in zip(filled, shards, strict=True):
            if owner(number) == parallel.place() and not shard.exists():
                blocks[number].load_state_dict(weights(number), assign=True, strict=False)
                of_block = blocks[number].state_dict(prefix=smaller.block_prefix(number))
                save_shard(model, _complete(of_block), shard)
                blocks[number].to("meta")
    parallel.in_main(save_index, folder, [first, *shards])


def _complete(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    missing = [name for name, tensor in tensors.items() if tensor.is_meta]
    assert not missing, f"stitching left {missing} without weights"
    return tensors


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
    if not any(level.sizes.width for (of, _), level in chosen.items() if of == block):
        return
    for kind in family.kinds:
        part = family.module(kind)
        level = chosen.get((block, kind))
        tensors, norms = split_block(inside, part)
        if level is None or level.sizes.width == 0:
            yield from ((name, norm) for name, norm in norms.items() if part.stays(name))
            continue
        units = database.kept(block, kind, level)
        for name, tensor in shrink_tensors(family, database.shapes[block, kind], tensors, units).items():
            yield f"{part.prefix}{name}", tensor
        yield from norms.items()
