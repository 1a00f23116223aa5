"""A cache of pruned modules that keeps what is costly to compute the longest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor, nn

K = TypeVar("K")


class ModuleCache(Generic[K]):
    """Pruned modules in the free memory of a device.

    Modules are whole while there is room. Then those that weren't used for longest are reduced to their output
    projection, the only part that isn't a copy of dense rows, and at last these are dropped.
    """

    def __init__(self, room: Callable[[int], int]) -> None:
        """`room` gives the bytes for all modules, from the bytes reserved for others."""
        self._room = room
        self._limit: int | None = None
        self._held = 0
        self._whole: OrderedDict[K, tuple[nn.Module, str]] = OrderedDict()
        self._outputs: OrderedDict[K, Tensor] = OrderedDict()

    def module(self, key: K) -> nn.Module | None:
        """The module, if it is whole."""
        if key not in self._whole:
            return None
        self._whole.move_to_end(key)
        return self._whole[key][0]

    def output(self, key: K) -> Tensor | None:
        """The output projection of a module that isn't whole, if it is kept."""
        return self._outputs.get(key)

    def put(self, key: K, module: nn.Module, output: str) -> None:
        """Keep a module, or as much of it as there is room for; `output` is the name of its output projection."""
        if self._limit is None:
            self._limit = self._room(0)
        if key in self._outputs:
            self._held -= self._outputs.pop(key).nbytes
        self._whole[key] = module, output
        self._held += _bytes(module)
        self._shrink()

    def _shrink(self) -> None:
        """Reduce and drop modules until they fit."""
        assert self._limit is not None
        while self._held > self._limit and self._whole:
            oldest, (module, name) = self._whole.popitem(last=False)
            self._outputs[oldest] = weight = module.get_parameter(name).data
            self._held += weight.nbytes - _bytes(module)
        while self._held > self._limit:
            self._held -= self._outputs.popitem(last=False)[1].nbytes

    def halve(self) -> None:
        """Keep half of what was allowed."""
        self._limit = (self._room(0) if self._limit is None else self._limit) // 2
        self._shrink()

    def reserve(self, size: int) -> None:
        """Drop everything, and measure the free memory now, without so many bytes for others."""
        self._whole.clear()
        self._outputs.clear()
        self._held = 0
        self._limit = self._room(size)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())
