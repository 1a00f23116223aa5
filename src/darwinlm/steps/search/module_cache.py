"""Pruned modules on demand, cut from the dense modules of the block at hand, with a cache.

A search walks through the blocks again and again, each time with the parent and with children. The least recently used
module is then the next that is needed, so a cache that drops it has no hits at all once it is too small. This one keeps
what it has for as long as a walk goes on, and the parent's modules always.

Where processes share the blocks of the decoder, a module is cut by the owner of its block, which alone reads the
factor.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from darwinlm.model.families.block_parts import absent
from darwinlm.model.surgery.shrink import shrink_tensors, small_module
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.model.walk.decoder import Decoder
from darwinlm.runtime import parallel
from darwinlm.runtime.memory import memory_of

Key = tuple[int, int]
"""Index of a module and a level."""
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
        self._arrived: dict[Key, nn.Module] = {}  # of the block at hand, for this process
        self._places: dict[int, list[int]] = {}
        for index, module in enumerate(space.modules):
            self._places.setdefault(module.block, []).append(index)
        memory = memory_of(decoder.device)
        self.cache = memory.watch(ModuleCache(partial(memory.room, "modules")))
        # Blocks, modules and factors share the memory that is free now.
        owned = database.cached_bytes / (1 if decoder.owner is None else parallel.size())
        memory.divide({"blocks": decoder.cached_bytes, "factors": owned, "modules": math.inf})
        decoder.reserve(0)
        self.cache.reserve(0)
        database.release()

    @torch.no_grad()
    def module(self, index: int, level: int) -> nn.Module:
        """The module at this index of the allocation, at a level."""
        if level == self.space.dense[index]:
            return self.dense[index]
        if (cached := self._arrived.get((index, level)) or self.cache.get((index, level))) is not None:
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
        self.cache.put((index, level), small)
        return small

    def share(self, block: int, allocations: Iterable[Allocation], own: Iterable[Allocation]) -> None:
        """Let the owner of a block cut what processes need in it, if they share blocks, and send it to them.

        `allocations` are those of all processes, `own` those of this one. The modules stay until the block is left.
        """
        if self.decoder.owner is None:
            return
        needed = self._cut(block, own)
        held = {key: module for key in needed if (module := self.cache.get(key)) is not None}
        missing = set().union(*parallel.meet(needed - held.keys()))
        wanted, owner = sorted(self._cut(block, allocations) & missing), self.decoder.owner(block)
        if wanted:
            cut = {key: self.module(*key) for key in wanted} if owner == parallel.place() else {}
            tensors = {key: module.state_dict() for key, module in cut.items()}
            forms = {key: parallel.forms_of(of_module) for key, of_module in tensors.items()}
            for key, form in parallel.meet(forms)[owner].items():
                sent = parallel.send_named(tensors.get(key, {}), form, owner, self.decoder.device)
                if key in needed - held.keys():
                    held[key] = cut[key] if key in cut else self._built(key, sent)
        self._arrived = held

    def _cut(self, block: int, allocations: Iterable[Allocation]) -> set[Key]:
        """Modules of a block that are neither whole nor gone in some allocations."""
        keys = {(index, allocation[index]) for allocation in allocations for index in self._places.get(block, ())}
        modules, dense = self.space.modules, self.space.dense
        return {
            (index, level)
            for index, level in keys
            if modules[index].levels[level].sizes.width > 0 and level != dense[index]
        }

    def _built(self, key: Key, tensors: Mapping[str, Tensor]) -> nn.Module:
        """A module of tensors that arrived."""
        module = self.space.modules[key[0]]
        sizes = self.database.sizes(module.block, module.kind, module.levels[key[1]])
        block, config = self.decoder.blocks[module.block], self.decoder.model.config
        small = small_module(block, config, self.decoder.family, module.block, sizes, tensors)
        self.cache.put(key, small)
        return small

    def begin(self, parent: Allocation | None = None) -> None:
        """Begin a walk through the blocks; the modules of a `parent`, if there is one, come again in the next ones."""
        self.cache.begin(None if parent is None else enumerate(parent))

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
            self._arrived = {}

    def apply(self, allocation: Allocation) -> None:
        """Put the modules of this allocation into the decoder, which holds all weights."""
        for block in self._places:
            self.put(block, allocation)

    def place(self, modules: Sequence[nn.Module]) -> None:
        """Put the given modules in, one for each place; the next `apply` removes them."""
        for index, (module, new) in enumerate(zip(self.space.modules, modules, strict=True)):
            self.decoder.set_module(module.block, module.kind, new)
            self.current[index] = PLACED


class ModuleCache:
    """Modules that are needed in walks through the blocks, within a share of the free memory.

    A full cache drops what this walk has passed without using it, and children of earlier parents. For a module of the
    parent it drops any other. What then doesn't fit isn't kept.

    Attributes:
        hits: Number of modules that were found.
        misses: Number of modules that had to be cut.
    """

    def __init__(self, room: Callable[[int], int]) -> None:
        self.hits = self.misses = 0
        self._room = room
        self._limit: int | None = None
        self._held = 0
        self._walk = self._of_parent = 0  # numbers of this walk, and of the first one with this parent
        self._parents: frozenset[Key] = frozenset()
        self._modules: OrderedDict[Key, tuple[nn.Module, int]] = OrderedDict()  # with the walk that used it last

    def reserve(self, size: int) -> None:
        """Drop all modules, and measure the free memory now, without so many bytes for others."""
        self._modules.clear()
        self._held, self._limit = 0, self._room(size)

    def begin(self, parent: Iterable[Key] | None) -> None:
        """Begin a walk through the modules in order of their index; those of a new `parent` are kept from now on."""
        self._walk += 1
        if parent is not None:
            self._parents, self._of_parent = frozenset(parent), self._walk

    def get(self, key: Key) -> nn.Module | None:
        """The module, if it is in the cache."""
        if key not in self._modules:
            self.misses += 1
            return None
        self.hits += 1
        module, _ = self._modules[key]
        self._modules[key] = module, self._walk
        self._modules.move_to_end(key)
        return module

    def put(self, key: Key, module: nn.Module) -> None:
        """Keep a module if there is room for it, or if others may go."""
        size, most = _bytes(module), self._most()
        if size > most:
            return
        while self._held + size > most:
            victim = self._droppable(key)
            if victim is None:
                return
            self._drop(victim)
        self._modules[key] = module, self._walk
        self._held += size

    def halve(self) -> None:
        """Keep half of what was allowed, the parent's modules last."""
        self._limit = self._most() // 2
        for key in sorted(self._modules, key=self._parents.__contains__):
            if self._held <= self._limit:
                return
            self._drop(key)

    def _droppable(self, key: Key) -> Key | None:
        """What goes for a module, the longest unused one first."""
        others = (held for held in self._modules if held not in self._parents)
        return next((held for held in others if key in self._parents or self._is_past(held, key)), None)

    def _is_past(self, held: Key, key: Key) -> bool:
        """Whether a walk at `key` won't use a module any more, as far as is known."""
        used = self._modules[held][1]
        return used < self._of_parent or (used < self._walk and held[0] < key[0])

    def _drop(self, key: Key) -> None:
        self._held -= _bytes(self._modules.pop(key)[0])

    def _most(self) -> int:
        if self._limit is None:
            self._limit = self._room(0)
        return self._limit


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())
