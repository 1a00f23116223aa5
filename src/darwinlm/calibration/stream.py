"""Walk a checkpoint block by block: one block's weights in memory at a time, one forward pass for each block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darwinlm.calibration.experts import expert_module, watch_experts
from darwinlm.calibration.moments import ExpertMoments, SecondMoment
from darwinlm.errors import NumericsError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.decoder import Decoder
from darwinlm.families.family import KINDS, Family, ModuleKind


@dataclass
class BlockMoments:
    """What calibration saw in one block.

    Attributes:
        block: its index.
        moments: for each module that is there and may be cut, E[x xᵀ] of its output projection's input, [d, d]
            float32; for the experts of a mixture one each, [e, d, d].
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
        batches = torch.split(tokens, self.rows)
        self.arguments = {len(batch): self.decoder.block_arguments(batch) for batch in batches}
        self.hidden = [self.decoder.embed(batch) for batch in batches]

    def load(self, block: int) -> dict[str, Tensor]:
        """Read a block's weights, give them to the block, and return them in the checkpoint's own type."""
        weights = self.checkpoint.read(self.checkpoint.block_prefix(block))
        module = self.decoder.blocks[block]
        # Older checkpoints carry buffers that models compute by now.
        wanted = module.state_dict().keys()
        weights = {name: tensor for name, tensor in weights.items() if name in wanted}
        cast = {name: tensor.to(self.device, self.dtype) for name, tensor in weights.items()}
        module.load_state_dict(cast, assign=True)
        return weights

    def unload(self, block: int) -> None:
        """Let go of a block's weights."""
        self.decoder.blocks[block].to("meta")

    @torch.no_grad()
    def run(self, block: int) -> None:
        """Move the residual stream through a loaded block.

        Raises:
            NumericsError: it isn't finite any more.
        """
        for index, hidden in enumerate(self.hidden):
            self.hidden[index] = self.decoder.run_block(block, hidden, self.arguments[len(hidden)][block])
        if not all(bool(torch.isfinite(hidden).all()) for hidden in self.hidden):
            raise NumericsError(
                f"block {block} of {self.checkpoint.folder} gives values that aren't finite on the calibration text: "
                "the checkpoint is broken, or try compute.dtype=float32"
            )


def output_projection(block: nn.Module, family: Family, kind: ModuleKind) -> nn.Linear | None:
    """The projection out of a module, None where the module is gone or a mixture of experts."""
    part = family.module(kind)
    owner = getattr(block, part.name, None)
    return getattr(owner, part.output, None)


def stream_moments(stream: BlockStream, *, skip: int = 0) -> Iterator[BlockMoments]:
    """Second moments of every block in order; the first `skip` blocks are only run through."""
    family = stream.checkpoint.family
    for block in range(stream.checkpoint.n_blocks):
        weights = stream.load(block)
        moments: dict[ModuleKind, SecondMoment | ExpertMoments] = {}
        with ExitStack() as hooks:
            mixture = expert_module(getattr(stream.decoder.blocks[block], family.mlp.name, None), family.mlp.experts)
            if mixture is not None and block >= skip:
                assert family.mlp.experts is not None
                sizes = getattr(mixture, family.mlp.experts.output).shape
                moments["mlp"] = of_experts = ExpertMoments(sizes[0], sizes[2], stream.device)
                hooks.callback(watch_experts(mixture, family.mlp.experts, of_experts).remove)
            for kind in KINDS if block >= skip else ():
                output = output_projection(stream.decoder.blocks[block], family, kind)
                if output is not None and not (kind == "attention" and family.attention.untouched):
                    moment = moments[kind] = SecondMoment(output.weight.shape[1], stream.device)
                    handle = output.register_forward_pre_hook(lambda _, inputs, to=moment: to.add(inputs[0]))
                    hooks.callback(handle.remove)
            stream.run(block)
        stream.unload(block)
        if block >= skip:
            yield BlockMoments(block, {kind: moment.mean() for kind, moment in moments.items()}, weights)
