"""CUDA graphs on the pretend device: what a step asked for while it was recorded is all that a replay runs.

Tensors, numbers and shapes are those of the recording, as in a CUDA graph, and recording changes no values. What CUDA
refuses while it records is refused: waits of the host, copies from pageable memory, sizes that depend on values.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.gpu.device import Gpu
from tests.gpu.kernels import on_cpu
from tests.gpu.rules import Call
from tests.gpu.tensors import THERE, PretendTensor


@dataclass
class Recorded:
    """What a recording was.

    Attributes:
        kernels: Number of operations that the device computes.
        replays: How often it was replayed.
    """

    kernels: int = 0
    replays: int = 0


@dataclass
class Recording(TorchDispatchMode):
    """A recorded step.

    Attributes:
        gpu: The device.
        calls: Operations with their arguments and results.
        counts: What outlives it.
        broken: Whether something was asked for that ends a recording.
    """

    gpu: Gpu
    calls: list[tuple[Any, Any, Any, Any]] = field(default_factory=list)
    counts: Recorded = field(default_factory=Recorded)
    broken: bool = False
    _before: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        call = Call(func, args, kwargs, tensors, THERE if kwargs.get("device") else None, self.gpu)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, PretendTensor):
                self._before.append((value.held, value.held.clone()))
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        self.counts.kernels += call.is_kernel
        return result

    def undo(self) -> None:
        """Give all tensors their values before the recording; its results get senseless ones."""
        for _, _, _, result in self._new():
            for one in tree_flatten(result)[0]:
                one.held.fill_(torch.nan if one.is_floating_point() else 0)
        for tensor, values in reversed(self._before):
            tensor.copy_(values)

    def replay(self) -> None:
        self.counts.replays += 1
        new = {id(call) for call in self._new()}
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            for call in self.calls:
                func, args, kwargs, result = call
                again = func(*_held(args), **on_cpu(_held(kwargs)))
                if id(call) in new:
                    pairs = zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True)
                    for kept, value in pairs:
                        kept.held.copy_(value)

    def _new(self) -> list[tuple[Any, Any, Any, Any]]:
        """Operations whose results are tensors of their own."""
        return [call for call in self.calls if not (call[0].is_view or call[0]._schema.is_mutable)]


def _held(values: Any) -> Any:
    return tree_map(lambda one: one.held if isinstance(one, PretendTensor) else one, values)
