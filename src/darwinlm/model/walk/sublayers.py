"""Run a block one sub-layer at a time, so that each runs once although its output projection changes in between.

A sub-layer runs inside its block while the others add zero. So norms, residual multipliers and everything
else around it are the family's code. Adding zero is exact, so all parts together give the block's result bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from darwinlm.model.families.block_parts import absent
from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.walk.decoder import finished, input_of
from darwinlm.model.walk.outputs import output_projection
from darwinlm.model.walk.stream import BlockStream
from darwinlm.runtime.memory import memory_of


class BlockWalk:
    """A residual stream moving through one loaded block.

    The stream is after the block once all sub-layers are finished.
    """

    def __init__(self, stream: BlockStream, block: int) -> None:
        self.stream = stream
        self.block = block
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def inputs(self, kind: ModuleKind) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch the input [b, t, d] of a sub-layer's output projection, and the residual stream before it.

        Inputs are kept for `finish` while there is room; `finish` computes the others a second time.
        """
        held, room = 0, memory_of(self.stream.device).room("module inputs")
        output = output_projection(self.stream.decoder.blocks[self.block], self.stream.checkpoint.family, kind)
        assert output is not None
        self._kept.clear()
        for index, hidden in enumerate(self.stream.hidden):
            x = input_of(output, partial(self._run_alone, kind, index, hidden))
            held += x.numel() * x.element_size()
            if held <= room:
                self._kept[index] = x
            yield x, hidden

    @torch.no_grad()
    def finish(self, kind: ModuleKind) -> None:
        """Move the stream past a sub-layer, with the current output projection. Raises NumericsError."""
        stream = self.stream
        if kind != "tail" and not stream.decoder.has(self.block, kind):
            return
        output = output_projection(stream.decoder.blocks[self.block], stream.checkpoint.family, kind)
        for index in range(len(stream.hidden)):
            x = self._kept.pop(index, None)
            if x is None or output is None:
                result = self._run_alone(kind, index, stream.hidden[index])
            else:
                part = stream.checkpoint.family.module(kind)
                with self._replaced(kind, finished(part, output(x))):
                    result = self._run_alone(kind, index, stream.hidden[index])
            stream.move(index, result)
        stream.check(self.block)

    @torch.no_grad()
    def ahead(self, kind: ModuleKind) -> Iterator[Tensor]:
        """For each batch the residual stream after a sub-layer, [b, t, m]; the stream itself isn't moved."""
        for index, hidden in enumerate(self.stream.hidden):
            yield self._run_alone(kind, index, hidden)

    def _run_alone(self, kind: ModuleKind, index: int, hidden: Tensor) -> Tensor:
        """The residual stream after one sub-layer, for a batch before it."""
        decoder = self.stream.decoder
        with ExitStack() as replacements:
            for unused in decoder.family.kinds:
                if unused not in (kind, "tail") and decoder.has(self.block, unused):
                    replacements.enter_context(self._replaced(unused, absent(decoder.family.module(unused))))
                    replacements.enter_context(self._without_norm(unused))
            if kind != "tail":
                replacements.enter_context(decoder.without_tail(self.block))
            return decoder.run_block(self.block, hidden, self.stream.arguments(index, self.block))

    @contextmanager
    def _replaced(self, kind: ModuleKind, module: nn.Module) -> Iterator[None]:
        decoder = self.stream.decoder
        original = decoder.module(self.block, kind)
        decoder.set_module(self.block, kind, module)
        try:
            yield
        finally:
            decoder.set_module(self.block, kind, original)

    @contextmanager
    def _without_norm(self, kind: ModuleKind) -> Iterator[None]:
        """Let the residual stream pass the norm behind a sub-layer that would change it (`SubLayer.sum_norm`)."""
        name, block = self.stream.decoder.family.module(kind).sum_norm, self.stream.decoder.blocks[self.block]
        if name is None:
            yield
            return
        norm = block.get_submodule(name)
        block.set_submodule(name, nn.Identity())
        try:
            yield
        finally:
            block.set_submodule(name, norm)
