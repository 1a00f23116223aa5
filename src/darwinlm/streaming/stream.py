"""Walk a checkpoint block by block: one block's weights in memory at a time, one forward pass for each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import NumericsError
from darwinlm.streaming.decoder import Decoder
from darwinlm.streaming.hidden import HiddenMemory, HiddenStates


class BlockStream:
    """The residual stream of some text between two blocks, moved forward one block at a time.

    The text is [n, t]; `dtype` and `device` are those of the forward pass, which has `batch_tokens` tokens. Without a
    `memory`, all of the stream is on the device. Raises StorageError if the disk has no room for a stream that doesn't
    fit in memory.
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
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.batch_sequences = max(1, batch_tokens // tokens.shape[1])
        model = checkpoint.skeleton()
        self.decoder = Decoder(model, checkpoint.family)
        for name, module in model.named_modules():
            if not name.startswith(checkpoint.family.layers):
                for key, buffer in module.named_buffers(recurse=False):
                    module._buffers[key] = buffer.to(device)
        with self._small_embedding(tokens) as places:
            batches = torch.split(places, self.batch_sequences) if len(places) else ()
            elements = tokens.numel() * int(checkpoint.config.hidden_size)
            self.hidden = HiddenStates((self.decoder.embed(batch) for batch in batches), elements, memory)
            self._arguments: list[list[dict[str, Any]]] = []
            self._slices = self._layer_inputs(batches, tokens.numel(), memory)

    def _layer_inputs(
        self, batches: Sequence[Tensor], n_tokens: int, memory: HiddenMemory | None
    ) -> HiddenStates | None:
        """Collect the arguments of all blocks for each batch; inputs of layers, [b, t, n, size], may go to a file."""
        tail, config = self.checkpoint.family.tail, self.checkpoint.config
        if tail is None or not getattr(config, tail.width):
            self._arguments = [self.decoder.block_arguments(batch) for batch in batches]
            return None

        def stacked() -> Iterator[Tensor]:
            for batch in batches:
                arguments = self.decoder.block_arguments(batch)
                yield torch.stack([row.pop(tail.argument) for row in arguments], dim=2)
                self._arguments.append(arguments)

        return HiddenStates(stacked(), n_tokens * len(self.decoder.blocks) * getattr(config, tail.width), memory)

    def arguments(self, index: int, block: int) -> dict[str, Any]:
        """Arguments of a block's call on a batch."""
        arguments = self._arguments[index][block]
        if self._slices is None:
            return arguments
        assert self.checkpoint.family.tail is not None
        return {**arguments, self.checkpoint.family.tail.argument: self._slices[index][:, :, block]}

    @contextmanager
    def _small_embedding(self, tokens: Tensor) -> Iterator[Tensor]:
        """Temporarily reduce embeddings to the rows of these tokens; yields their indices in them, [n, t]."""
        family, tail = self.checkpoint.family, self.checkpoint.family.tail
        used, places = torch.unique(tokens, return_inverse=True)
        names = [family.embedding]
        if tail is not None and getattr(self.checkpoint.config, tail.width):
            names.append(tail.embedding)
            large = tuple(f"{name}." for name in (*names, family.head))
            self._replace_outside(lambda name, old: old if name.startswith(large) else self._outside(name))
        embeddings: list[Any] = [self.decoder.model.get_submodule(name) for name in names]
        before = [(embedding.weight, embedding.padding_idx) for embedding in embeddings]
        for name, embedding in zip(names, embeddings, strict=True):
            rows = self.checkpoint.rows(f"{name}.weight", used, dtype=self.dtype).to(self.device)
            embedding.weight, embedding.padding_idx = nn.Parameter(rows, requires_grad=False), None
        try:
            yield places
        finally:
            for embedding, (whole, padding) in zip(embeddings, before, strict=True):
                embedding.weight, embedding.padding_idx = whole, padding

    def _outside(self, name: str) -> Tensor:
        """A tensor outside the blocks, in the type and on the device of the pass."""
        return self.checkpoint.read(name, dtype=self.dtype)[""].to(self.device)

    def load_head(self) -> None:
        """Load everything outside the blocks: embedding, last norm and head."""
        self._replace_outside(lambda name, _: self._outside(name))

    def unload_head(self) -> None:
        """Release everything outside the blocks."""
        self._replace_outside(lambda _, parameter: parameter.to("meta"))

    def _replace_outside(self, replacement: Callable[[str, Tensor], Tensor]) -> None:
        """Replace the parameters outside the blocks, by name and present value."""
        model = self.decoder.model
        for name in self.checkpoint.names_outside_blocks():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            if leaf in dict(module.named_parameters(recurse=False)):
                tensor = replacement(name, getattr(module, leaf))
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        model.tie_weights()

    def load(self, block: int) -> dict[str, Tensor]:
        """Read a block's weights, load them into the block, and return them in the checkpoint's type."""
        prefix = self.checkpoint.block_prefix(block)
        weights = self.checkpoint.read(prefix)
        module = self.decoder.blocks[block]
        # Older checkpoints contain buffers that current models compute.
        wanted = module.state_dict().keys()
        weights = {name: tensor for name, tensor in weights.items() if name in wanted}
        cast = {
            name: self.checkpoint.cast(prefix + name, tensor.to(self.device), self.dtype)
            for name, tensor in weights.items()
        }
        module.load_state_dict(cast, assign=True)
        return weights

    def unload(self, block: int) -> None:
        """Release a block's weights."""
        self.decoder.blocks[block].to("meta")

    @torch.no_grad()
    def run(self, block: int) -> None:
        """Move the residual stream through a loaded block. Raises NumericsError if the stream is no longer finite."""
        for index, hidden in enumerate(self.hidden):
            self.move(block, index, self.decoder.run_block(block, hidden, self.arguments(index, block)))

    def move(self, block: int, index: int, after: Tensor) -> None:
        """Replace a batch by the stream behind a block or a part of it. Raises NumericsError if that isn't finite."""
        if not bool(torch.isfinite(after).all()):
            raise NumericsError(
                f"block {block} of {self.checkpoint.folder} gives values that aren't finite on the calibration text: "
                "the checkpoint is broken, or try compute.dtype=float32"
            )
        self.hidden[index] = after
