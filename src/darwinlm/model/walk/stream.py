"""Walk a checkpoint block by block: one block's weights in memory at a time, one forward pass for each block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.decoder import BlockArguments
from darwinlm.model.walk.hidden import HiddenMemory, HiddenStates
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.compute import all_finite
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import NumericsError
from darwinlm.runtime.memory import ALL


class BlockStream:
    """The residual stream of some text between two blocks, moved forward one block at a time.

    The text is [n, t]; `dtype` and `device` are those of the forward pass, which has `batch_tokens` tokens. Without a
    `memory`, all of the stream is on the device. Blocks that are needed `again` stay where there is room. Blocks that
    `beside`, a stream of the same checkpoint which is moved first, has loaded aren't read a second time. Raises
    StorageError if the disk has no room for a stream that doesn't fit in memory.

    Attributes:
        batches: The text in batches, [b, t] each.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_tokens: int,
        memory: HiddenMemory | None = None,
        again: bool = False,
        beside: BlockStream | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.batch_sequences = max(1, batch_tokens // tokens.shape[1])
        lender: StreamedDecoder | None = None if beside is None else beside.decoder
        self.decoder: StreamedDecoder = StreamedDecoder(checkpoint, tokens, dtype=dtype, device=device, lender=lender)
        self.decoder.reserve(0 if again else ALL)
        self.batches = torch.split(tokens, self.batch_sequences) if len(tokens) else ()
        elements = tokens.numel() * int(checkpoint.config.hidden_size)
        self.hidden = HiddenStates((self.decoder.embed(batch) for batch in self.batches), elements, memory)
        self._arguments = [self.decoder.block_arguments(batch) for batch in self.batches]
        self._finite: list[Tensor] = []

    def arguments(self, index: int, block: int) -> BlockArguments:
        """Arguments of a block's call on a batch."""
        return self._arguments[index][block]

    def walk(self) -> Iterator[int]:
        """Yield all blocks in order; each one is loaded while it is visited, and `run` moves the stream through it."""
        return self.decoder.walk(range(len(self.decoder.blocks)))

    @torch.no_grad()
    def run(self, block: int) -> None:
        """Move the residual stream through a loaded block. Raises NumericsError if the stream is no longer finite."""
        for index, hidden in enumerate(self.hidden):
            self.move(index, self.decoder.run_block(block, hidden, self.arguments(index, block)))
        self.check(block)

    def move(self, index: int, after: Tensor) -> None:
        """Replace a batch by the stream behind a block or a part of it; `check` follows the last one."""
        self._finite.append(all_finite(after))  # read once for all batches: a GPU's host goes on
        self.hidden[index] = after

    def check(self, block: int) -> None:
        """Raise NumericsError if a batch that was moved through a block isn't finite."""
        finite, self._finite = self._finite, []
        if finite and not bool(torch.stack(finite).all()):
            raise NumericsError(
                f"block {block} of {self.checkpoint.folder} gives values that aren't finite on the calibration text: "
                "the checkpoint is broken, or try compute.dtype=float32"
            )


def stream_of(
    context: Context,
    checkpoint: Checkpoint,
    tokens: Tensor,
    memory: HiddenMemory | None = None,
    *,
    again: bool = False,
    beside: BlockStream | None = None,
) -> BlockStream:
    """The residual stream of a model on tokens [n, t], before the first block, on the device of a run.

    `again` and `beside` as in `BlockStream`.
    """
    return BlockStream(
        checkpoint,
        tokens,
        dtype=context.dtype,
        device=context.device,
        batch_tokens=context.batch_tokens,
        memory=memory,
        again=again,
        beside=beside,
    )
