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
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from darwinlm.runtime import compute
from tests.gpu.amounts import amounts_of
from tests.gpu.cuda import Clocks, Point, cuda_of
from tests.gpu.kernels import computed, on_cpu, plain_attention, with_cpu_types
from tests.gpu.rules import NAME, Call, written_by
from tests.gpu.tally import HostWaitError, MixedDevicesError, Tally, UnfinishedError, asking_line, hot_loop
from tests.gpu.tensors import INNER, THERE, Mode, Names, PretendTensor, Storage, Use


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
        self._storages: weakref.WeakValueDictionary[int, Storage] = weakref.WeakValueDictionary()
        self._pins: dict[int, _Pinned] = {}
        self._whole = False  # while a kernel of a GPU runs in several operations

    def restart(self) -> tuple[Tally, int]:
        """Count anew; returns what was counted so far and the peak."""
        before = self.tally, self.peak
        self.tally, self.peak = Tally(), self.allocated
        return before

    @contextmanager
    def one_kernel(self, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Iterator[None]:
        """Count attention in the body as the single kernel that it is on a GPU."""
        self.tally.kernels[asking_line()] += 1
        self.tally.amounts["moved"] += 2 * query.nbytes + key.nbytes + value.nbytes
        self.tally.amounts["products" if query.itemsize == 2 else "float32"] += 4 * query.numel() * key.shape[-2]
        before, self._whole = self._whole, True
        try:
            yield
        finally:
            self._whole = before

    # ---------------------------------------------------------------------------------------------------- memory

    def storage_of(self, held: Tensor) -> Storage | None:
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
            use = Use(line.number, (line.number, line.given))
            found = self._storages[key] = Storage(use)
            self._grow(size)
            weakref.finalize(found, self._release, size, use).atexit = False
        return found

    def _grow(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def _release(self, size: int, use: Use) -> None:
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
        self.tally.mixes[f"{asking_line()}: {reason}"] += 1
        raise MixedDevicesError(f"expected all tensors to be on the same device: {asking_line()}: {reason}")

    def refuse_float64(self, what: str) -> None:
        raise TypeError(f"the device doesn't support float64: {asking_line()}: {what}")

    def refuse_in_recording(self, what: str) -> None:
        """A wait ends a recording."""
        if self.recording is not None:
            self.recording.broken = True
            raise torch.AcceleratorError(f"operation not permitted when stream is capturing: {what}")

    def waits_for(self, what: str) -> None:
        self.refuse_in_recording(what)
        self.tally.waits[f"{asking_line()}: {what}"] += 1
        self._refuse_if_hot(what)

    def _refuse_if_hot(self, what: str) -> None:
        hot = hot_loop()
        if hot:
            raise HostWaitError(f"the host waits for the device in {hot}: {asking_line()}: {what}")

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
            result = computed(func, with_cpu_types(call, plain_args), on_cpu(plain_kwargs))
        given = {id(one.held): one for one in ours}
        into_host = call.name == "aten::copy_" and call.goes_down
        here = target == THERE if target is not None else not into_host
        result = tree_map(lambda one: self._wrapped(one, given, here=here), result)
        self.tally.amounts += Counter() if self._whole else amounts_of(call, result)
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
        line = asking_line()
        self.tally.kernels[line] += call.is_kernel and not self._whole
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
                    raise UnfinishedError(f"{asking_line()}: {call.name} on what stream {point[0]} hasn't finished")
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
                        f"{asking_line()}: pinned memory is {action} before a copy of stream {point[0]} has ended"
                    )


def _without_gradients(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()


def _register() -> None:
    if hasattr(torch, INNER):
        return
    importlib.import_module("torch._dynamo")  # PyTorch imports it at its first use, and must not find a GPU then
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(INNER)
    module = getattr(torch, INNER)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.is_available = lambda: False  # to libraries, outside `pretend_gpu`


@contextmanager
def pretend_gpu(*, float64: bool = True, memory: int = 1 << 36) -> Iterator[Gpu]:
    """Give this PyTorch a GPU for a while, with or without float64, with so many bytes."""
    _register()
    gpu = Gpu(float64=float64, memory=memory)
    built_in, run = functional.scaled_dot_product_attention, threading.Thread.run

    def attention(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        if not isinstance(query, PretendTensor):
            return built_in(query, *rest, **named)
        with gpu.one_kernel(query, *rest):
            return plain_attention(query, *rest, **named)

    def run_there(thread: threading.Thread) -> None:
        with Mode(gpu), Names(gpu):
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
            mock.patch.object(getattr(torch, INNER), "is_available", return_value=True),
            mock.patch.object(compute, "WITHOUT_FLOAT64", frozenset() if float64 else frozenset({NAME})),
            torch.autograd.set_multithreading_enabled(False),
            cuda_of(gpu),
            Mode(gpu),
            Names(gpu),
        ):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_swap_module_params_on_conversion(swapped)
    assert not gpu.faults, gpu.faults
