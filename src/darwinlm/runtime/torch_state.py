"""PyTorch's settings of a thread and a process: the usual ones while our work runs, whatever others choose."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from darwinlm.runtime.process_state import process_state
from darwinlm.runtime.spinning import soon_asleep

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

EXACT = "highest"
"""Precision of float32 products that computes them in float32."""
CASTING = ("cpu", "cuda", "mps")
"""Types of devices with an autocast of their own."""


@contextmanager
def usual_state() -> Iterator[None]:
    """Gradients, no autocast, new tensors in float32 on the CPU, and exact float32 products; then the caller's again.

    A caller may be inside of `torch.inference_mode` or `torch.autocast`, or have another default device or type. What
    we compute depends on none of them, as no key of a step knows them.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(True))
        for kind in CASTING:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):  # else each call of PyTorch would take a little longer
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        if precision != EXACT:
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision(EXACT)
        stack.enter_context(soon_asleep())
        yield


@contextmanager
def put_back() -> Iterator[None]:
    """Put back what other people's code may leave changed: what `process_state` names, and PyTorch's settings.

    Scripts turn gradients off at their top, and the search would fail without them.
    """
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    gradients, device, threads = torch.is_grad_enabled(), torch.get_default_device(), torch.get_num_threads()
    casting = {kind: torch.is_autocast_enabled(kind) for kind in CASTING}
    deterministic = torch.are_deterministic_algorithms_enabled()
    hooks = {name: dict(value) for name, value in _hooks_of_all_modules().items()}
    try:
        with process_state():
            yield
    finally:
        for name, value in _hooks_of_all_modules().items():
            value.clear()
            value.update(hooks[name])
        for kind, enabled in casting.items():
            torch.set_autocast_enabled(kind, enabled)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.set_grad_enabled(gradients)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device == torch.device("cpu") else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _hooks_of_all_modules() -> dict[str, dict[int, object]]:
    """The dictionaries of hooks that PyTorch calls for every module of the process, which has no public name."""
    named = vars(torch.nn.modules.module)
    return {name: value for name, value in named.items() if name.startswith("_global_") and isinstance(value, dict)}


def in_usual_state(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a function run in PyTorch's usual state."""

    @functools.wraps(function)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with usual_state():
            return function(*arguments, **named)

    return run
