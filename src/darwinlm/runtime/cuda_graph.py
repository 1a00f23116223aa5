"""Kernels of a step, recorded once as a CUDA graph and then launched together."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def can_record(device: torch.device) -> bool:
    """Whether a device has CUDA graphs."""
    return device.type == "cuda"


def recorded(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Record a step without running it; return a function that runs it.

    The step should have run before with tensors of the same sizes, so that all libraries are initialised. It must not
    wait for the device, and its numbers, shapes and tensors are those of the recording: what changes from step to step
    has to be in the values of tensors that are kept. Raises RuntimeError if the step can't be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    # Garbage with an older graph must not be collected during a recording, which would fail.
    gc.freeze()
    try:
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),  # a failed recording doesn't return to it
            torch.cuda.graph(graph, capture_error_mode="thread_local"),  # other threads may copy at the same time
        ):
            step()
    finally:
        gc.unfreeze()
    return graph.replay
