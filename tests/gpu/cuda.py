"""What PyTorch's Python code for CUDA stands on, for the pretend device: streams, events, graphs, memory, one card.

Functions and classes of `torch.cuda` stay PyTorch's own, so they refuse what they refuse on a GPU; only what they call
in C++ is replaced. Work is done at once, but what is known of its end is what a host and streams would know: a copy
from or to pinned memory is pending until the host has waited for it, and work of another stream is unfinished until
the current stream waits for it.
"""

from __future__ import annotations

import importlib.util
import itertools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

if TYPE_CHECKING:
    from tests.gpu.device import Gpu

DEVICE_TYPE = 1
"""CUDA's number among the types of devices."""

Point = tuple[int, int]
"""A stream's number, and how much work it was given before."""


@dataclass
class Line:
    """A stream: how much work it was given, and the work of others that it waits for."""

    number: int
    given: int = 0
    known: dict[int, int] = field(default_factory=dict)

    def snapshot(self) -> dict[int, int]:
        """All work that is finished once the present work of the stream is."""
        return {**self.known, self.number: self.given}

    def knows(self, point: Point) -> bool:
        return point[0] == self.number or self.known.get(point[0], 0) >= point[1]


def merge(known: dict[int, int], more: dict[int, int]) -> None:
    for number, given in more.items():
        known[number] = max(known.get(number, 0), given)


class Clocks:
    """All streams, and what the host knows of them.

    Attributes:
        host: Work by stream that the host has waited for.
        pools: Memory pools of recordings that the allocator serves.
    """

    def __init__(self) -> None:
        self.lines = {0: Line(0)}
        self.host: dict[int, int] = {}
        self.pools: list[Any] = []
        self._own = threading.local()
        self._handles = itertools.count(1)

    @property
    def line(self) -> Line:
        return self.lines[getattr(self._own, "stream", 0)]

    def choose(self, number: int) -> None:
        self._own.stream = number

    def add(self) -> int:
        number = len(self.lines)
        self.lines[number] = Line(number)
        return number

    def wait(self, known: dict[int, int]) -> None:
        merge(self.host, known)

    def wait_for_all(self) -> None:
        for line in self.lines.values():
            self.wait(line.snapshot())

    def finished(self, point: Point) -> bool:
        return self.host.get(point[0], 0) >= point[1]

    def handle(self) -> tuple[int, int]:
        return 0, next(self._handles)


def _stream_base(gpu: Gpu) -> Any:
    """The class in C++ that `torch.cuda.Stream` inherits from."""
    clocks = gpu.clocks

    class StreamBase:
        device_type, device_index = DEVICE_TYPE, 0
        device = torch.device("cuda", 0)

        def __new__(cls, priority: int = 0, stream_id: int = -1, device_index: int = 0, device_type: int = 0) -> Any:
            self = object.__new__(cls)
            self.stream_id = clocks.add() if stream_id < 0 else stream_id
            self.cuda_stream = self.stream_id
            return self

        def __eq__(self, other: object) -> bool:
            return isinstance(other, StreamBase) and other.stream_id == self.stream_id

        __hash__ = object.__hash__

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            gpu.waits_for("a stream")
            clocks.wait(clocks.lines[self.stream_id].snapshot())

    return StreamBase


def _event_base(gpu: Gpu) -> Any:
    """That of `torch.cuda.Event`."""
    clocks = gpu.clocks

    class EventBase:
        cuda_event = 1

        def __new__(cls, **_: bool) -> Any:
            self = object.__new__(cls)
            self.known = {}
            return self

        def record(self, stream: Any) -> None:
            self.known = clocks.lines[stream.stream_id].snapshot()

        def wait(self, stream: Any) -> None:
            merge(clocks.lines[stream.stream_id].known, self.known)

        def synchronize(self) -> None:
            gpu.refuse_in_recording("a wait for an event")
            clocks.wait(self.known)

        def query(self) -> bool:
            clocks.wait(self.known)
            return True

    return EventBase


def _graph_base(gpu: Gpu) -> Any:
    """That of `torch.cuda.CUDAGraph`."""
    clocks = gpu.clocks

    class GraphBase:
        def __new__(cls, keep_graph: bool) -> Any:
            self = object.__new__(cls)
            self.recording, self.ended = None, False
            return self

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            assert capture_error_mode == "thread_local", "other threads copy at the same time"
            if clocks.line.number == 0:
                raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
            from tests.gpu.recording import Recording

            self.held = clocks.handle() if pool is None else pool
            clocks.pools.append(self.held)
            self.recording = Recording(gpu)
            self.recording.__enter__()
            gpu.recording = self.recording

        def capture_end(self) -> None:
            self.recording.__exit__(None, None, None)
            gpu.recording = None
            with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
                self.recording.undo()
            if self.recording.broken:  # as in C++: before the allocator leaves the pool
                raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
            clocks.pools.remove(self.held)
            self.ended = True
            gpu.recordings.append(self.recording.counts)

        def replay(self) -> None:
            self.recording.replay()

        def reset(self) -> None:
            self.recording = None

        def pool(self) -> Any:
            if not self.ended:
                raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
            return self.held

    return GraphBase


class PretendGenerator(torch.Generator):
    """A generator of random numbers that belongs to a device; it draws on the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        self = super().__new__(cls, "cpu")
        self.owner = torch.device(device)
        if self.owner.type == "cuda" and self.owner.index:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return self

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.owner


def _again(module: ModuleType) -> ModuleType:
    """A module of PyTorch, run once more."""
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_of_tests", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def _functions(gpu: Gpu) -> dict[str, Any]:
    clocks = gpu.clocks

    def only(index: int) -> None:
        if index != 0:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")

    def set_stream(*, stream_id: int, device_index: int, device_type: int) -> None:
        clocks.choose(stream_id)

    def synchronize() -> None:
        gpu.waits_for("the device")
        clocks.wait_for_all()

    def statistics(index: int) -> dict[str, Any]:
        only(index)
        bytes_ = {"all": {"current": gpu.allocated, "peak": gpu.peak}}
        return {"allocated_bytes": bytes_, "reserved_bytes": bytes_}

    def end_pool(index: int, pool: Any) -> None:
        if pool not in clocks.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        clocks.pools.remove(pool)

    return {
        "_has_cuda": True,
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": only,
        "_cuda_getCurrentStream": lambda index: (clocks.line.number, 0, DEVICE_TYPE),
        "_cuda_getDefaultStream": lambda index: (0, 0, DEVICE_TYPE),
        "_cuda_setStream": set_stream,
        "_cuda_synchronize": synchronize,
        "_cuda_emptyCache": lambda: None,
        "_host_emptyCache": lambda: None,
        "_cuda_memoryStats": statistics,
        "_cuda_resetPeakMemoryStats": lambda index: gpu.restart(),
        "_cuda_isCurrentStreamCapturing": lambda: gpu.recording is not None,
        "_graph_pool_handle": clocks.handle,
        "_cuda_endAllocateToPool": end_pool,
        "_cuda_releasePool": lambda index, pool: None,
    }


def _exchanged(index: int) -> int:
    if index > 0:
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return 0


@contextmanager
def cuda_of(gpu: Gpu) -> Iterator[None]:
    """Let `torch.cuda` find one card, an H100 with the device's memory."""
    memory = SimpleNamespace(cudaMemGetInfo=lambda index: (gpu.memory - gpu.allocated, gpu.memory))
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=gpu.memory, uuid="GPU-0")
    with ExitStack() as stack:

        def replaced(owner: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))

        bases = {"_CudaStreamBase": _stream_base, "_CudaEventBase": _event_base, "_CUDAGraph": _graph_base}
        replaced(torch._C, **{name: base(gpu) for name, base in bases.items()}, **_functions(gpu))
        replaced(torch.version, cuda="12.8")
        replaced(
            torch.cuda,
            _initialized=True,
            _cached_device_count=None,
            _cudart=memory,
            _get_device_properties=lambda index: card,
            _exchange_device=_exchanged,
            _maybe_exchange_device=_exchanged,
            default_generators=(torch.Generator(),),
        )
        replaced(torch, Generator=PretendGenerator)
        streams = _again(torch.cuda.streams)
        replaced(torch.cuda, Stream=streams.Stream, Event=streams.Event)
        graphs = _again(torch.cuda.graphs)
        names = ("CUDAGraph", "graph", "graph_pool_handle", "is_current_stream_capturing")
        replaced(torch.cuda, **{name: getattr(graphs, name) for name in names})
        yield
