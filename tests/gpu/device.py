"""A pretend NVIDIA GPU for machines without one: a device `cuda:0` whose tensors are computed on the CPU.

    with pretend_gpu() as gpu:  # or pretend_gpu(float64=False), as Apple's; pretend_gpu(memory=1 << 24), a small one
        run_stages(open_run(...), "report")  # compute.device=auto finds it
    assert not gpu.tally.mixes

Tensors hold a tensor of the CPU and say that they are on the GPU. Every operation on them really runs, so values and
the flow that depends on them are those of a CPU. Before it runs it is compared with what CUDA takes (`rules.py`), and
what it would cost is counted by the line of the package that asked for it. Storage is counted for as long as a tensor
on the device uses it, and more than the device has is refused. `torch.cuda` is PyTorch's own over one card (`cuda.py`).

Also refused: a host that waits in a loop of `HOT`, main memory that is read or overwritten before a copy from or to it
has ended, and work of one stream on what another has not finished.

PyTorch's C++ knows the device as `pretend` (PrivateUse1 with its Python backend), since a CPU build can't run anything
on CUDA. It can't see what CUDA's own kernels, libraries and workspaces do, fragmentation, NCCL, or the Trainer of
transformers. Inference mode is `torch.no_grad` there.
"""

from __future__ import annotations

import importlib
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from darwinlm.model.walk import decoder, stream
from darwinlm.runtime import compute
from darwinlm.steps.database import block_moments, elimination, store
from darwinlm.steps.search import fitness, slopes
from tests.gpu.cuda import Clocks, Point, cuda_of
from tests.gpu.rules import NAME, Call, written_by

INNER = "pretend"
"""The device's name in PyTorch's C++."""

THERE = torch.device(NAME, 0)
PACKAGE = "/darwinlm/"

PRODUCTS = {
    getattr(torch.ops.aten, name).dtype: getattr(torch.ops.aten, name).default
    for name in ("mm", "bmm", "addmm", "baddbmm")
    if hasattr(getattr(torch.ops.aten, name), "dtype")
}

HOT = {
    (elimination, "_cheapest"),
    (elimination, "_remove"),
    (stream, "run"),
    (decoder, "through"),
    (decoder, "move"),
    (decoder, "back"),
    (fitness, "_walk"),
}
"""Loops over batches, candidates or removed units in which the host must not wait for the device: module, function."""

KNOWN_WAITS = {
    (stream, "check"),  # once for all batches
    (slopes, "_levels"),  # once for each module
    (decoder, "_record"),  # before a walk, once for each shape of text
    (store, "_computed"),  # a file, once; what is read again is pinned
    (block_moments, "watch_mixture"),  # the host must know the experts of the tokens
}
"""Functions called from them that may."""


def file_of(module: ModuleType) -> str:
    """A module's file as lines are named: from the package on."""
    assert module.__file__ is not None
    return module.__file__.rpartition(PACKAGE)[2]


HOT_PLACES, KNOWN_PLACES = ({(file_of(module), name) for module, name in places} for places in (HOT, KNOWN_WAITS))


class MixedDevicesError(RuntimeError):
    """What CUDA says as "Expected all tensors to be on the same device"."""


class HostWaitError(AssertionError):
    """The host waits for the device in a hot loop."""


class UnfinishedError(AssertionError):
    """Memory is used before earlier work on it has ended."""


@dataclass
class Tally:
    """What was counted, by the line of the package that asked for it.

    Attributes:
        kernels: Operations that the device computes.
        waits: Times that the host waits for the device.
        uploads: Copies from main memory to the device.
        mixes: Operations that CUDA would refuse, with the reason.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    mixes: Counter[str] = field(default_factory=Counter)

    def inside(self, module: ModuleType) -> dict[str, int]:
        """Totals over the lines of a module."""
        named = {name: getattr(self, name) for name in ("kernels", "waits", "uploads")}
        place = f"{file_of(module)}:"
        return {name: sum(n for at, n in counter.items() if at.startswith(place)) for name, counter in named.items()}


@dataclass(eq=False)
class _Use:
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


class _Storage:
    """Stands for a piece of the device's memory; what uses it refers to it."""

    def __init__(self, use: _Use) -> None:
        self.use = use


class PretendTensor(Tensor):
    """A tensor on the pretend device; `held` has its values."""

    held: Tensor
    gpu: Gpu
    storage_token: _Storage | None
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


class _Names(TorchFunctionMode):
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


class _Mode(TorchDispatchMode):
    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.run(func, args, kwargs or {})


@dataclass(eq=False)
class _Pinned:
    """A piece of pinned memory with the copies that may be under way; `down` ones write it."""

    pending: list[tuple[Point, bool]] = field(default_factory=list)


class Gpu:
    """Checks, counts and runs operations on the pretend device.

    Attributes:
        tally: What was counted since it was last replaced.
        allocated: Bytes that are in use.
        peak: The most that were, since `restart`.
        memory: Bytes that it has.
        float64: Whether it has this type; Apple's GPUs don't.
        clocks: Streams.
        recording: The graph that is recorded now.
        recordings: All finished ones.
        faults: Memory that was released while another stream used it.
    """

    def __init__(self, *, float64: bool = True, memory: int = 1 << 36) -> None:
        self.float64 = float64
        self.memory = memory
        self.tally = Tally()
        self.allocated = self.peak = 0
        self.clocks = Clocks()
        self.recording: Any = None
        self.recordings: list[Any] = []
        self.faults: list[str] = []
        self._storages: weakref.WeakValueDictionary[int, _Storage] = weakref.WeakValueDictionary()
        self._pins: dict[int, _Pinned] = {}

    def restart(self) -> tuple[Tally, int]:
        """Count anew; returns what was counted so far and the peak."""
        before = self.tally, self.peak
        self.tally, self.peak = Tally(), self.allocated
        return before

    # ---------------------------------------------------------------------------------------------------- memory

    def storage_of(self, held: Tensor) -> _Storage | None:
        """What stands for the memory of a tensor; new memory is counted until nothing refers to it."""
        storage = held.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return None
        found = self._storages.get(key)
        if found is None:
            if self.allocated + size > self.memory:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
            line = self.clocks.line
            use = _Use(line.number, (line.number, line.given))
            found = self._storages[key] = _Storage(use)
            self._grow(size)
            weakref.finalize(found, self._release, size, use).atexit = False
        return found

    def _grow(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def _release(self, size: int, use: _Use) -> None:
        """The allocator hands this memory out again to the stream that it came from."""
        self.allocated -= size
        own = self.clocks.lines[use.line]
        for point in use.points():
            if point[0] not in use.others and not own.knows(point) and not self.clocks.finished(point):
                self.faults.append(f"memory of stream {use.line} was released while stream {point[0]} used it")

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in pinned memory."""
        buffer = np.empty(max(tensor.nbytes, 1), dtype=np.uint8)
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            memory = torch.from_numpy(buffer)
            made = memory[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            key = memory.untyped_storage().data_ptr()
        self._pins[key] = _Pinned()
        weakref.finalize(buffer, self._pins.pop, key, None).atexit = False
        return made

    def pinned(self, tensor: Tensor) -> _Pinned | None:
        if not self._pins or tensor.layout != torch.strided or tensor.device.type != "cpu":
            return None
        return self._pins.get(tensor.untyped_storage().data_ptr())

    # --------------------------------------------------------------------------------------------------- refusals

    def refuse(self, reason: str) -> None:
        """Note that CUDA would refuse this, and refuse it."""
        self.tally.mixes[f"{_line()}: {reason}"] += 1
        raise MixedDevicesError(f"expected all tensors to be on the same device: {_line()}: {reason}")

    def refuse_float64(self, what: str) -> None:
        raise TypeError(f"the device doesn't support float64: {_line()}: {what}")

    def refuse_in_recording(self, what: str) -> None:
        """A wait ends a recording."""
        if self.recording is not None:
            self.recording.broken = True
            raise torch.AcceleratorError(f"operation not permitted when stream is capturing: {what}")

    def waits_for(self, what: str) -> None:
        self.refuse_in_recording(what)
        self.tally.waits[f"{_line()}: {what}"] += 1
        self._refuse_if_hot(what)

    def _refuse_if_hot(self, what: str) -> None:
        hot = _hot_loop()
        if hot:
            raise HostWaitError(f"the host waits for the device in {hot}: {_line()}: {what}")

    # ----------------------------------------------------------------------------------------------------- running

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation: as it is where the device has no part in it."""
        flat, structure = tree_flatten((args, kwargs))
        tensors = [one for one in flat if isinstance(one, Tensor)]
        ours = [one for one in tensors if isinstance(one, PretendTensor)]
        target = kwargs.get("device")
        if target is not None:
            target = THERE if target.type == INNER else target
        if not ours and target != THERE:
            self._use_pinned(func, args, kwargs, tensors)
            return func(*args, **kwargs)
        call = Call(func, args, kwargs, tensors, target, self)
        refusal = call.refusal()
        if refusal is not None:
            self.refuse(refusal)
        lacking = call.lacking_kernel()
        if lacking is not None:
            raise NotImplementedError(lacking)
        doubles = kwargs.get("dtype") == torch.float64 or any(one.dtype == torch.float64 for one in ours)
        if doubles and not self.float64:
            self.refuse_float64(call.name)
        self._count(call)
        self._order(call, ours)
        held = [one.held if isinstance(one, PretendTensor) else one for one in flat]
        plain_args, plain_kwargs = tree_unflatten(held, structure)
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            result = _computed(func, _on_cpu(call, plain_args), on_cpu(plain_kwargs))
        given = {id(one.held): one for one in ours}
        into_host = call.name == "aten::copy_" and call.goes_down
        here = target == THERE if target is not None else not into_host
        result = tree_map(lambda one: self._wrapped(one, given, here=here), result)
        return self._copied(call, result)

    def _wrapped(self, one: Any, given: dict[int, PretendTensor], *, here: bool) -> Any:
        if not isinstance(one, Tensor) or not here:
            return one
        if one.dtype == torch.float64 and not self.float64:
            self.refuse_float64("a result")
        if id(one) not in given:
            return PretendTensor(one, self)
        same = given[id(one)]  # changed in place
        assert same.shape == one.shape, "an operation changed the shape of its own argument"
        return same

    def _count(self, call: Call) -> None:
        line = _line()
        self.tally.kernels[line] += call.is_kernel
        if call.goes_up:
            self.tally.uploads[line] += 1
            if not call.in_passing:
                self.refuse_in_recording("a copy from pageable memory")
                self._refuse_if_hot("a copy from pageable memory")
                self.clocks.wait(self.clocks.line.snapshot())
        if call.waits:
            self.waits_for(call.waits)
            self.clocks.wait(self.clocks.line.snapshot())

    def _order(self, call: Call, ours: list[PretendTensor]) -> None:
        """Refuse work on what another stream hasn't finished; note it."""
        if self.recording is not None or not (call.is_kernel or call.goes_up or call.goes_down):
            return
        line = self.clocks.line
        line.given += 1
        written = call.written
        for one in ours:
            if one.storage_token is None:
                continue
            use = one.storage_token.use
            writes = any(one is each for each in written)
            for point in use.points() if writes else [use.written]:
                if not line.knows(point) and not self.clocks.finished(point):
                    raise UnfinishedError(f"{_line()}: {call.name} on what stream {point[0]} hasn't finished")
            if writes:
                use.written, use.read = (line.number, line.given), {}
            else:
                use.read[line.number] = line.given

    def _copied(self, call: Call, result: Any) -> Any:
        """Note a copy between pinned memory and the device, which may end later."""
        line = self.clocks.line
        point = line.number, line.given
        if not call.in_passing:
            return result
        if call.goes_up:
            source = self.pinned(call.source)
            assert source is not None
            source.pending.append((point, False))
        elif call.goes_down:
            if call.name == "aten::_to_copy":  # C++ pins what it is copied to
                result = self.pin(result)
            place = self.pinned(result)  # the copy's own target
            assert place is not None
            place.pending.append((point, True))
        return result

    def _use_pinned(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        """Refuse work of the host on pinned memory that a copy still needs."""
        if not self._pins or func.is_view:
            return
        for tensor in tensors:
            memory = self.pinned(tensor)
            if memory is None:
                continue
            memory.pending = [each for each in memory.pending if not self.clocks.finished(each[0])]
            writes = any(tensor is one for one in written_by(func, args, kwargs))
            for point, down in memory.pending:
                if down or writes:
                    action = "written" if writes else "read"
                    raise UnfinishedError(
                        f"{_line()}: pinned memory is {action} before a copy of stream {point[0]} has ended"
                    )


def _hot_loop() -> str:
    """The hot loop that the present line runs in, if any."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.rpartition(PACKAGE)
        if found and (path, frame.f_code.co_name) in KNOWN_PLACES:
            return ""
        if found and (path, frame.f_code.co_name) in HOT_PLACES:
            return f"{path} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The CPU's result. It has no products with a type of their own; cuBLAS sums those of halves in float32."""
    if func in PRODUCTS:
        *factors, dtype = (*args, *kwargs.values())
        return PRODUCTS[func](*(one.to(dtype) if isinstance(one, Tensor) else one for one in factors))
    return func(*args, **kwargs)


def _on_cpu(call: Call, args: Any) -> Any:
    if call.name == "aten::histc" and not args[0].is_floating_point():  # CUDA alone counts integers
        return (args[0].float(), *args[1:])
    return args


def on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = {name: value for name, value in kwargs.items() if name not in ("pin_memory", "non_blocking")}
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    return kwargs


def _line() -> str:
    """The innermost line of the package on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.rpartition(PACKAGE)
        if found:
            return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention in single operations; arguments are those of PyTorch's."""
    assert dropout_p == 0.0
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~mask, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


def _without_gradients(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()


def _register() -> None:
    if hasattr(torch, INNER):
        return
    importlib.import_module("torch._dynamo")  # PyTorch imports it at its first use, and must not find a GPU then
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(INNER)
    getattr(torch, INNER).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]


@contextmanager
def pretend_gpu(*, float64: bool = True, memory: int = 1 << 36) -> Iterator[Gpu]:
    """Give this PyTorch a GPU for a while, with or without float64, with so many bytes."""
    _register()
    gpu = Gpu(float64=float64, memory=memory)
    built_in, run = functional.scaled_dot_product_attention, threading.Thread.run

    def attention(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        chosen = plain_attention if isinstance(query, PretendTensor) else built_in
        return chosen(query, *rest, **named)

    def run_there(thread: threading.Thread) -> None:
        with _Mode(gpu), _Names(gpu):
            run(thread)

    swapped = torch.__future__.get_swap_module_params_on_conversion()
    lifted = torch._C._only_lift_cpu_tensors()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else tied weights part when a module moves
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with (
            mock.patch.object(functional, "scaled_dot_product_attention", attention),
            mock.patch.object(threading.Thread, "run", run_there),  # a mode belongs to its thread
            mock.patch.object(torch, "inference_mode", _without_gradients),  # its tensors have no Python side
            mock.patch.object(compute, "WITHOUT_FLOAT64", frozenset() if float64 else frozenset({NAME})),
            torch.autograd.set_multithreading_enabled(False),
            cuda_of(gpu),
            _Mode(gpu),
            _Names(gpu),
        ):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_swap_module_params_on_conversion(swapped)
    assert not gpu.faults, gpu.faults
