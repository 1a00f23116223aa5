"""A model's tensors at the sizes of a format: blocks padded with zeros, absent sub-layers filled in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.parts import Attention, Mlp
from darwinlm.model.families.shapes import head_dim, module_shapes, output_name
from darwinlm.model.layer_sizes import BlockSizes, block_sizes
from darwinlm.model.surgery.padding import Tensors, own_kv_heads, stock_config, widen_mlp, zero_sublayer
from darwinlm.model.surgery.shrink import split_block


class Reshaper:
    """Reads a checkpoint's blocks at other sizes.

    `sizes` are given if the configuration is the stock one and only the weights are smaller.
    """

    def __init__(self, checkpoint: Checkpoint, sizes: Sequence[BlockSizes] | None = None) -> None:
        self.checkpoint = checkpoint
        self.family = checkpoint.family
        self.columns = head_dim(checkpoint.config)  # of the first block; see `columns_of`
        self.sizes = stored_sizes(checkpoint) if sizes is None else sizes
        self.stock = stock_config(checkpoint) if sizes is None else checkpoint.config

    @cached_property
    def template(self) -> list[Tensors]:
        """Names and shapes of every block of the stock model, without data."""
        model = Checkpoint(self.checkpoint.folder, self.stock, self.family, "").skeleton()
        state = model.state_dict()
        blocks = []
        for block in range(self.checkpoint.n_blocks):
            prefix = self.checkpoint.block_prefix(block)
            inside = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
            blocks.append({name.removeprefix(prefix): tensor for name, tensor in inside.items()})
        return blocks

    def columns_of(self, block: int) -> int:
        """Columns of a block's heads."""
        return head_dim(self.checkpoint.config, block)

    def block(self, target: BlockSizes) -> Tensors:
        """All tensors of a block at the target's sizes, by name inside the block, in the checkpoint's type.

        Sub-layers that the target doesn't have are left out; those that the model doesn't have are zeros.
        """
        present = self.sizes[target.block]
        inside = self.checkpoint.read(self.checkpoint.block_prefix(target.block))
        scale = self.family.tail.scale if self.family.tail else ""
        result: Tensors = {scale: inside[scale]} if scale in inside else {}
        for kind in self.family.kinds:
            part = self.family.module(kind)
            if output_name(part, self.template[target.block]) is None:
                continue
            tensors, norms = split_block(inside, part)
            if isinstance(part, Attention | Mlp):
                sizes, target_sizes = present.of(kind), target.of(kind)
                if not target_sizes.width:
                    continue
                if not sizes.width:
                    result |= zero_sublayer(self.template[target.block], part, target_sizes, self.checkpoint.dtype)
                    continue
                if isinstance(part, Mlp):
                    tensors = widen_mlp(tensors, part, sizes, target_sizes)
                elif sizes.owners is not None:
                    tensors = own_kv_heads(tensors, part, sizes)
            result |= {f"{part.prefix}{name}": tensor for name, tensor in tensors.items()} | norms
        return result

    def outside(self) -> Iterator[tuple[str, Tensor]]:
        """Embedding, final norm and head."""
        for name in sorted(self.checkpoint.names_outside_blocks()):
            yield name, self.checkpoint.read(name)[""]


def stored_sizes(checkpoint: Checkpoint) -> list[BlockSizes]:
    """Sizes of all blocks, read from the weights."""
    shapes = module_shapes(checkpoint, checkpoint.shapes())
    return block_sizes(checkpoint.n_blocks, {shape.place: shape.sizes for shape in shapes})
