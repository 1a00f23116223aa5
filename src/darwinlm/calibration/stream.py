"""Walk a checkpoint block by block: one block's weights in memory at a time, one forward pass for each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.calibration.moments import SecondMoment
from darwinlm.errors import NumericsError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.decoder import Decoder
from darwinlm.families.family import ModuleKind


@dataclass
class BlockMoments:
    """What calibration saw in one block.

    Attributes:
        block: its index.
        moments: for each module that is there, E[x xᵀ] of its output projection's input, [d, d] float32.
        weights: the block's tensors in their own type, by name inside the block.
    """

    block: int
    moments: dict[ModuleKind, Tensor]
    weights: dict[str, Tensor]


class BlockStream:
    """The residual stream of some text at the border between two blocks, moved forward a block at a time.

    Args:
        checkpoint: the model.
        tokens: [n, t] packed text.
        dtype: of the forward pass.
        device: of the forward pass.
        batch_tokens: tokens in one forward pass.
    """

    def __init__(
        self, checkpoint: Checkpoint, tokens: Tensor, *, dtype: torch.dtype, device: torch.device, batch_tokens: int
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.rows = max(1, batch_tokens // tokens.shape[1])
        model = checkpoint.skeleton()
        self.decoder = Decoder(model, checkpoint.family)
        outside = checkpoint.read(checkpoint.family.embedding + ".", dtype=dtype)
        embedding = model.get_submodule(checkpoint.family.embedding)
        embedding.load_state_dict({k: v.to(device) for k, v in outside.items()}, assign=True)
        for name, module in model.named_modules():
            if not name.startswith(checkpoint.family.layers):
                for key, buffer in module.named_buffers(recurse=False):
                    module._buffers[key] = buffer.to(device)
        batches = tokens.split(self.rows)
        self.arguments = {len(batch): self.decoder.block_arguments(batch) for batch in batches}
        self.hidden = [self.decoder.embed(batch) for batch in batches]

    @torch.no_grad()
    def advance(self, block: int, watch: Callable[[nn.Module], list[Any]] | None = None) -> dict[str, Tensor]:
        """Load a block, run all text through it, unload it.

        Args:
            block: must be the next one.
            watch: called with the loaded block; registers hooks and returns their handles.

        Returns:
            The block's tensors in the checkpoint's own type, by name inside the block.

        Raises:
            NumericsError: the residual stream isn't finite any more.
        """
        weights = self.checkpoint.read(self.checkpoint.block_prefix(block))
        module = self.decoder.blocks[block]
        module.load_state_dict(
            {name: tensor.to(self.device, self.dtype) for name, tensor in weights.items()}, assign=True
        )
        with ExitStack() as stack:
            for handle in watch(module) if watch else []:
                stack.callback(handle.remove)
            for index, hidden in enumerate(self.hidden):
                self.hidden[index] = self.decoder.run_block(block, hidden, self.arguments[len(hidden)][block])
        module.to("meta")
        if not all(bool(torch.isfinite(hidden).all()) for hidden in self.hidden):
            raise NumericsError(
                f"block {block} of {self.checkpoint.folder} gives values that aren't finite on the calibration text: "
                "the checkpoint is broken, or try compute.dtype=float32"
            )
        return weights


def stream_moments(stream: BlockStream, *, skip: int = 0) -> Iterator[BlockMoments]:
    """Second moments of every block in order; the first `skip` blocks are only run through."""
    family = stream.checkpoint.family
    for block in range(stream.checkpoint.n_blocks):
        if block < skip:
            stream.advance(block)
            continue
        moments: dict[ModuleKind, SecondMoment] = {}

        def watch(module: nn.Module, moments: dict[ModuleKind, SecondMoment] = moments) -> list[Any]:
            handles = []
            for part in (family.attention, family.mlp):
                try:
                    output = module.get_submodule(f"{part.name}.{part.output}")
                except AttributeError:
                    continue
                kind: ModuleKind = "attention" if part is family.attention else "mlp"
                moment = moments[kind] = SecondMoment(output.weight.shape[1], stream.device)
                handles.append(output.register_forward_pre_hook(lambda _, inputs, to=moment: to.add(inputs[0])))
            return handles

        weights = stream.advance(block, watch)
        yield BlockMoments(block, {kind: moment.mean() for kind, moment in moments.items()}, weights)
