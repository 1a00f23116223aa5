"""Tensors of the pretend device, and what makes PyTorch take them for tensors of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.gpu.cuda import Point
from tests.gpu.rules import NAME

if TYPE_CHECKING:
    from tests.gpu.device import Gpu

INNER = "pretend"
"""The device's name in PyTorch's C++."""

THERE = torch.device(NAME, 0)


@dataclass(eq=False)
class Use:
    """Last work on a piece of memory.

    Attributes:
        line: Stream that it was allocated on.
        written: Last work that wrote it.
        read: Last work of each stream that read it.
        others: Streams that the allocator was told of.
    """

    line: int
    written: Point
    read: dict[int, int] = field(default_factory=dict)
    others: set[int] = field(default_factory=set)

    def points(self) -> list[Point]:
        return [self.written, *self.read.items()]


class Storage:
    """Stands for a piece of the device's memory; what uses it refers to it."""

    def __init__(self, use: Use) -> None:
        self.use = use


class PretendTensor(Tensor):
    """A tensor on the pretend device; `held` has its values."""

    held: Tensor
    gpu: Gpu
    storage_token: Storage | None
    device = property(lambda self: THERE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor, gpu: Gpu) -> PretendTensor:
        self: PretendTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(INNER, 0),
        )
        self.held, self.gpu = held, gpu
        self.storage_token = gpu.storage_of(held)
        return self

    def record_stream(self, stream: Any) -> None:
        if self.storage_token is not None:
            self.storage_token.use.others.add(stream.stream_id)

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            with torch.no_grad():
                copied: Any = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.tolist:
                return args[0].cpu().tolist()
            if func is torch.Tensor.numpy:
                args[0].gpu.refuse("numpy() of a tensor on the device")
            result = func(*args, **(kwargs or {}))
            if func == torch.Tensor.data.__set__ and isinstance(args[0], cls):  # type: ignore[attr-defined]
                args[0].held, args[0].storage_token = args[1].held, args[1].storage_token
            return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = tree_flatten((args, kwargs))[0]
        gpu = next(one.gpu for one in flat if isinstance(one, cls))
        return gpu.run(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """Gives C++ the name that it knows, and pins main memory."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.is_pinned:
            return not isinstance(args[0], PretendTensor) and self.gpu.pinned(args[0]) is not None
        if func is torch.Tensor.pin_memory:
            if isinstance(args[0], PretendTensor):
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
            return self.gpu.pin(args[0])
        if (generator := kwargs.get("generator")) is not None:
            device = kwargs.get("device") or next((one.device for one in args if isinstance(one, Tensor)), "cpu")
            if torch.device(device).type != generator.device.type:
                self.gpu.refuse(f"{func.__name__}: a generator of {generator.device} for numbers on {device}")
        pin = kwargs.pop("pin_memory", False)
        texts = func is torch.Tensor.to
        args = tuple(_inner(one, texts=texts) for one in args)
        kwargs = {name: _inner(one, texts=name == "device") for name, one in kwargs.items()}
        result = func(*args, **kwargs)
        return self.gpu.pin(result) if pin and not isinstance(result, PretendTensor) else result


def _inner(value: Any, *, texts: bool) -> Any:
    """A device with the name that C++ knows."""
    if texts and isinstance(value, str) and value.split(":")[0] == NAME:
        value = torch.device(value)
    if isinstance(value, torch.device) and value.type == NAME:
        if value.index:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return torch.device(INNER, 0)
    return value


class Mode(TorchDispatchMode):
    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.run(func, args, kwargs or {})
