"""A decoder whose weights are read from the checkpoint when a walk reaches them; they stay where there is room.

A walk holds one block, and on a GPU the next one, which is copied meanwhile. The head is read like a block. Of
embeddings, only the rows of some text are there, for the whole life of the decoder.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.transfers import Arriving, Mover, pinned_like
from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import DeviceMemoryError
from darwinlm.runtime.memory import Bounded, all_bytes, memory_of

HEAD = -1
"""The head among the blocks that stay."""


class StreamedDecoder(Decoder):
    """The decoder of a checkpoint on some text.

    `tokens` are all tokens that it will embed; other ones give wrong rows. `dtype` and `device` are those of the pass.
    `weights` gives those of a block by name in it; without, they are the checkpoint's.

    Attributes:
        params: Number of parameters of the whole model; a tied embedding counts once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device,
        weights: Callable[[int], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__(checkpoint.skeleton(dtype), checkpoint.family)
        self.checkpoint = checkpoint
        self.params = sum(parameter.numel() for parameter in self.model.parameters())
        largest = max(sum(weight.numel() for weight in block.parameters()) for block in self.blocks) * dtype.itemsize
        if largest > (there := all_bytes(device)):
            raise DeviceMemoryError(
                f"a block of {checkpoint.source} takes {size(largest)}, but {device} has {size(there)}: use a device "
                "with more memory, or compute.device=cpu"
            )
        self._weights = weights or (lambda block: checkpoint.read(checkpoint.block_prefix(block), mapped=False))
        # Noted now, since a thread reads a block while others stand in for it.
        self._names = [frozenset(block.state_dict()) for block in self.blocks]
        self._dtype = dtype
        self._mover, self._thread = None, None
        if device.type == "cuda":  # a new thread's GPU is the first one, where it would take memory
            self._mover = Mover(device)
            self._thread = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))
        self._coming: dict[int, Future[dict[str, Arriving]]] = {}
        self._loaded: set[int] = set()
        memory = memory_of(device)
        self._staying: Bounded[int, list[Tensor]] = memory.watch(
            Bounded(
                lambda weights: sum(weight.nbytes for weight in weights),
                partial(memory.room, "blocks"),
                scanned=True,
                dropped=partial(_release, weakref.ref(self)),
            )
        )
        self._load_outside(torch.unique(tokens), device)

    def _load_outside(self, used: Tensor, device: torch.device) -> None:
        """Load rows of embeddings and the small parts outside the blocks, and prepare a separate head."""
        family, tail = self.family, self.family.tail
        for name, module in self.model.named_modules():
            if not name.startswith(family.layers):
                for key, buffer in module.named_buffers(recurse=False):
                    module._buffers[key] = buffer.to(device)
        head, embedding = self.model.get_output_embeddings(), self.model.get_submodule(family.embedding)
        self._head_from = family.embedding if head.weight is embedding.weight else family.head
        head.weight = nn.Parameter(head.weight.detach(), requires_grad=False)  # no longer tied
        embeddings = [family.embedding]
        if tail is not None and getattr(self.checkpoint.config, tail.width):
            embeddings.append(tail.embedding)
        for name in embeddings:
            embedding = self.model.get_submodule(name)
            rows = self.checkpoint.rows(f"{name}.weight", used, dtype=self._dtype).to(device)
            embedding.weight, embedding.padding_idx = nn.Parameter(rows, requires_grad=False), None
            embedding.register_forward_pre_hook(partial(_places, used.to(device)))
        large = tuple(f"{name}." for name in (*embeddings, family.head))
        for name in self.checkpoint.names_outside_blocks():
            owner, _, leaf = name.rpartition(".")
            if not name.startswith(large) and leaf in self.model.get_submodule(owner)._parameters:
                tensor = self.checkpoint.read(name, dtype=self._dtype)[""].to(device)
                setattr(self.model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream and of what modules compute in."""
        return self._dtype

    def reserve(self, room: int, among: int = 1) -> None:
        """Leave so many bytes of the device free from now on, and divide the rest among so many decoders."""
        for block in [*self._loaded]:
            self.unload(block)
        self._coming.clear()
        self._staying.reserve(room, among)

    def walk(self, blocks: Iterable[int]) -> Iterator[int]:
        """Blocks in this order, each with its weights while it is visited."""
        order = list(blocks)
        try:
            for place, block in enumerate(order):
                self.load(block, *order[place + 1 : place + 2])
                yield block
                self._leave(block, list(self.blocks[block].parameters()))
        finally:  # a block that was fetched for a walk that failed would take memory from the next one
            self._coming.clear()

    def load(self, block: int, *following: int) -> dict[str, Tensor]:
        """Load a block; on a GPU, the `following` ones, if there are any, are then read and copied while it is used.

        Returns the weights that were read, in the checkpoint's type; none if the block was there.
        """
        there = {} if block in self._loaded else self._load(block)
        for each in following:
            self._fetch(each)
        return there

    def _load(self, block: int) -> dict[str, Tensor]:
        if self._mover is None:
            there = self._read(block)
        else:
            self._fetch(block)
            there = {name: self._mover.take(each) for name, each in self._coming.pop(block).result().items()}
        prefix = self.checkpoint.block_prefix(block)
        cast = {
            name: self.checkpoint.cast(prefix + name, tensor.to(self.device), self._dtype)
            for name, tensor in there.items()
        }
        self.blocks[block].load_state_dict(cast, assign=True)
        self._loaded.add(block)
        return there

    def unload(self, block: int) -> None:
        """Release the weights of a block or of the head."""
        (self.model.get_output_embeddings() if block == HEAD else self.blocks[block]).to("meta")
        self._loaded.discard(block)

    @contextmanager
    def with_head(self, like: object = None) -> Iterator[None]:
        """The head, while the body runs; that of a decoder `like` this one is shared if it is equal."""
        if HEAD not in self._loaded:
            self._load_head(like)
        try:
            yield
        finally:
            self._leave(HEAD, list(self.model.get_output_embeddings().parameters()))

    def _load_head(self, like: object) -> None:
        head: Any = self.model.get_output_embeddings()
        others = like.model.get_output_embeddings() if isinstance(like, StreamedDecoder) else None
        for leaf, owner in (("weight", self._head_from), ("bias", self.family.head)):
            if getattr(head, leaf, None) is not None:
                tensor = self.checkpoint.read(f"{owner}.{leaf}", dtype=self._dtype)[""].to(self.device)
                other = getattr(others, leaf, None)
                shared = other if other is not None and not other.is_meta and torch.equal(other, tensor) else tensor
                setattr(head, leaf, nn.Parameter(shared.detach(), requires_grad=False))
        self._loaded.add(HEAD)

    def _read(self, block: int) -> dict[str, Tensor]:
        wanted = self._names[block]  # older checkpoints contain buffers that models compute
        return {name: tensor for name, tensor in self._weights(block).items() if name in wanted}

    def _fetch(self, block: int) -> None:
        wanted = block in range(len(self.blocks)) and block not in self._loaded and block not in self._coming
        if self._thread is not None and wanted:
            self._coming[block] = self._thread.submit(self._send, block)

    def _send(self, block: int) -> dict[str, Arriving]:
        """Read a block, and begin to copy it to the device."""
        assert self._mover is not None
        return {name: self._mover.fetch(pinned_like(host).copy_(host)) for name, host in self._read(block).items()}

    def _leave(self, block: int, weights: list[Tensor]) -> None:
        """Keep a block or the head if there is room, or release it."""
        if self._staying.get(block) is None and not self._staying.put(block, weights):
            self.unload(block)


def _release(decoder: weakref.ref[StreamedDecoder], block: int) -> None:
    """Release a block or the head, without a cycle that would keep the decoder's memory."""
    there = decoder()
    if there is not None:
        there.unload(block)


def _places(used: Tensor, _: nn.Module, ids: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Places of tokens among the sorted ones whose rows are there."""
    return (torch.searchsorted(used, ids[0]).clamp_(max=len(used) - 1),)
