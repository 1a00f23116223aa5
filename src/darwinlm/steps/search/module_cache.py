"""Pruned modules on demand, cut from the dense modules of the block at hand, with a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from darwinlm.model.families.block_parts import absent
from darwinlm.model.surgery.shrink import shrink_tensors, small_module
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.model.walk.decoder import Decoder
from darwinlm.runtime.memory import Bounded, memory_of

PLACED = -1
"""Level of a place that holds a module set by `place`."""


class PlacedModules:
    """Puts allocations into a decoder by swapping modules; the dense model is never copied."""

    def __init__(self, decoder: Decoder, database: ModuleReader, space: SearchSpace) -> None:
        self.decoder = decoder
        self.database = database
        self.space = space
        self.dense = [decoder.module(module.block, module.kind) for module in space.modules]
        self.current: list[int] = list(space.dense)
        self._places: dict[int, list[int]] = {}
        for index, module in enumerate(space.modules):
            self._places.setdefault(module.block, []).append(index)
        memory = memory_of(decoder.device)
        self._cache: Bounded[tuple[int, int], nn.Module] = memory.watch(
            Bounded(_bytes, partial(memory.room, "modules"))
        )
        # Blocks, modules and factors share the memory that is free now.
        decoder.reserve(0)
        self._cache.reserve(0)
        database.release()

    @torch.no_grad()
    def module(self, index: int, level: int) -> nn.Module:
        """The module at this index of the allocation, at a level."""
        if level == self.space.dense[index]:
            return self.dense[index]
        if (cached := self._cache.get((index, level))) is not None:
            return cached
        module = self.space.modules[index]
        chosen = module.levels[level]
        family = self.decoder.family
        part = family.module(module.kind)
        if chosen.sizes.width == 0:
            return absent(part)
        kept = self.database.kept(module.block, module.kind, chosen)
        tensors = shrink_tensors(family, self.database.shapes[module.place], self.dense[index].state_dict(), kept)
        block, config = self.decoder.blocks[module.block], self.decoder.model.config
        small = small_module(block, config, family, module.block, kept.sizes, tensors)
        self._cache.put((index, level), small)
        return small

    def put(self, block: int, allocation: Allocation) -> None:
        """Put the modules of this allocation into a block, whose weights are there."""
        for index in self._places.get(block, ()):
            if self.current[index] != allocation[index]:
                self.decoder.set_module(block, self.space.modules[index].kind, self.module(index, allocation[index]))
                self.current[index] = allocation[index]

    def levels(self, block: int, allocation: Allocation) -> tuple[int, ...]:
        """Levels of an allocation in a block."""
        return tuple(allocation[index] for index in self._places.get(block, ()))

    @contextmanager
    def visiting(self, block: int) -> Iterator[None]:
        """Put the dense modules back into a block afterwards."""
        try:
            yield
        finally:
            self.put(block, self.space.dense)

    def apply(self, allocation: Allocation) -> None:
        """Put the modules of this allocation into the decoder, which holds all weights."""
        for block in self._places:
            self.put(block, allocation)

    def place(self, modules: Sequence[nn.Module]) -> None:
        """Put the given modules in, one for each place; the next `apply` removes them."""
        for index, (module, new) in enumerate(zip(self.space.modules, modules, strict=True)):
            self.decoder.set_module(module.block, module.kind, new)
            self.current[index] = PLACED


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())
