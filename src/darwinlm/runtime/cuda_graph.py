"""Kernels of a step, recorded once as a CUDA graph and then launched together."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress

import torch


def recorded(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Record a step without running it; return a function that runs it. On other devices, that is the step itself.

    The step should have run before with tensors of the same sizes, so that all libraries are initialised. It must not
    wait for the device, and its numbers, shapes and tensors are those of the recording: what changes from step to step
    has to be in the values of tensors that are kept. Raises RuntimeError if the step can't be recorded.
    """
    if device.type != "cuda":
        return step
    try:
        return _record(step, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # the allocator can't give back what it keeps while it records
        return _record(step, device)


def _record(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Record a step. `torch.cuda.graph` would first wait for the device and return all unused memory."""
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # Garbage with an older graph must not be collected during a recording, which would fail.
    gc.freeze()
    try:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.graph(graph).capture_stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # other threads may copy at the same time
            try:
                step()
            finally:
                graph.capture_end()
    except BaseException as error:  # noqa: BLE001 - raised again
        _leave(device, pool)
        cause = error.__context__  # the end of a failed recording is an error that hides the reason
        raise cause if isinstance(cause, RuntimeError) else error from None
    finally:
        gc.unfreeze()
    return graph.replay


def _leave(device: torch.device, pool: tuple[int, int]) -> None:
    """Let the allocator leave a recording that failed, which PyTorch does only for one that ended well.

    Else it would serve later tensors from the recording's memory, and never take back what two streams have used.
    """
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)  # PyTorch 2.6 has no such function
    if end is not None:
        with suppress(RuntimeError):  # the recording itself ended well
            end(device.index, pool)
            torch._C._cuda_releasePool(device.index, pool)
