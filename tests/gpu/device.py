"""A pretend GPU for machines without one: a device of its own whose tensors are computed on the CPU.

    with pretend_gpu() as gpu:  # or pretend_gpu(float64=False), as Apple's
        run_stages(open_run(..., "compute.device=pretend"), "report")
    assert not gpu.tally.mixes

Tensors say that they are on the device `pretend` (PyTorch's PrivateUse1 with its Python backend) and hold a tensor of
the CPU. Every operation on them really runs, so values and the flow that depends on them are those of a CPU. Before it
runs it is compared with what CUDA takes (`rules.py`), and what it would cost is counted by the line of the package that
asked for it. Storage is counted for as long as a tensor on the device uses it.

It can't see what CUDA's own kernels, libraries, streams, allocator and workspaces do, code that asks for
`device.type == "cuda"`, the Trainer of transformers, or `torch.inference_mode`.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from darwinlm.runtime import compute
from tests.gpu.rules import Call

NAME = "pretend"
PACKAGE = "/darwinlm/"


class MixedDevicesError(RuntimeError):
    """What CUDA says as "Expected all tensors to be on the same device"."""


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

    def inside(self, place: str) -> dict[str, int]:
        """Totals over the lines whose description holds a text, such as a file's name."""
        named = {name: getattr(self, name) for name in ("kernels", "waits", "uploads")}
        return {name: sum(n for at, n in counter.items() if place in at) for name, counter in named.items()}


class _Storage:
    """Stands for a piece of the device's memory; what uses it refers to it."""


class PretendTensor(Tensor):
    """A tensor on the pretend device; `held` has its values."""

    held: Tensor
    gpu: Gpu
    storage_token: _Storage | None

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device, gpu: Gpu) -> PretendTensor:
        """Wrap a tensor of the CPU."""
        self: PretendTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
        )
        self.held, self.gpu = held, gpu
        self.storage_token = gpu.storage_of(held)
        return self

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
        """Catch what never comes to ATen, or picks a kernel by a device that a CPU build hasn't got."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is functional.scaled_dot_product_attention:
                return plain_attention(*args, **(kwargs or {}))
            if func is torch.Tensor.tolist:
                return args[0].cpu().tolist()
            if func is torch.Tensor.numpy:
                args[0].gpu.refuse("numpy() of a tensor on the device")
                return args[0].cpu().numpy()
            result = func(*args, **(kwargs or {}))
            if func == torch.Tensor.data.__set__ and isinstance(args[0], cls):  # type: ignore[attr-defined]
                args[0].held, args[0].storage_token = args[1].held, args[1].storage_token
            return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Outside the mode, as in the way back."""
        flat = tree_flatten((args, kwargs))[0]
        gpu = next(one.gpu for one in flat if isinstance(one, cls))
        return gpu.run(func, args, kwargs or {})


class Gpu(TorchDispatchMode):
    """Checks, counts and runs operations on the pretend device.

    Attributes:
        tally: What was counted since it was last replaced.
        allocated: Bytes that are in use.
        peak: The most that were, since `restart`.
        float64: Whether it has this type; Apple's GPUs don't.
    """

    def __init__(self, *, float64: bool = True) -> None:
        super().__init__()
        self.float64 = float64
        self.tally = Tally()
        self.allocated = self.peak = 0
        self._storages: weakref.WeakValueDictionary[int, _Storage] = weakref.WeakValueDictionary()

    def restart(self) -> tuple[Tally, int]:
        """Count anew; returns what was counted so far and the peak."""
        before = self.tally, self.peak
        self.tally, self.peak = Tally(), self.allocated
        return before

    def storage_of(self, held: Tensor) -> _Storage | None:
        """What stands for the memory of a tensor; new memory is counted until nothing refers to it."""
        storage = held.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return None
        found = self._storages.get(key)
        if found is None:
            found = self._storages[key] = _Storage()
            self._grow(size)
            weakref.finalize(found, self._grow, -size).atexit = False
        return found

    def _grow(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def refuse(self, reason: str) -> None:
        """Note that CUDA would refuse this, and refuse it."""
        self.tally.mixes[f"{_line()}: {reason}"] += 1
        raise MixedDevicesError(f"expected all tensors to be on the same device: {_line()}: {reason}")

    def refuse_float64(self, what: str) -> None:
        """Say what Apple's GPUs say."""
        raise TypeError(f"the device doesn't support float64: {_line()}: {what}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation in the mode."""
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation: as it is where the device has no part in it."""
        flat, structure = tree_flatten((args, kwargs))
        tensors = [one for one in flat if isinstance(one, Tensor)]
        ours = [one for one in tensors if isinstance(one, PretendTensor)]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        if target is not None and target.type == NAME:
            target = torch.device(NAME, target.index or 0)
        if not ours and (target is None or target.type != NAME):
            return func(*args, **kwargs)
        call = Call(func, args, kwargs, tensors, target, NAME)
        refusal = call.refusal()
        if refusal is not None:
            self.refuse(refusal)
        doubles = kwargs.get("dtype") == torch.float64 or any(one.dtype == torch.float64 for one in ours)
        if doubles and not self.float64:
            self.refuse_float64(call.name)
        self._count(call)
        if call.name == "aten::record_stream":
            return None
        held = [one.held if isinstance(one, PretendTensor) else one for one in flat]
        plain_args, plain_kwargs = tree_unflatten(held, structure)
        with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
            result = func(*_on_cpu(call, plain_args), **on_cpu(plain_kwargs))
        device = target if target is not None else ours[0].device
        given = {id(one.held): one for one in ours}
        return tree_map(lambda one: self._wrapped(one, device, given), result)

    def _wrapped(self, one: Any, device: torch.device, given: dict[int, PretendTensor]) -> Any:
        if not isinstance(one, Tensor) or device.type != NAME:
            return one
        if one.dtype == torch.float64 and not self.float64:
            self.refuse_float64("a result")
        if id(one) not in given:
            return PretendTensor(one, device, self)
        same = given[id(one)]  # changed in place
        assert same.shape == one.shape, "an operation changed the shape of its own argument"
        return same

    def _count(self, call: Call) -> None:
        line = _line()
        self.tally.kernels[line] += call.is_kernel
        self.tally.uploads[line] += call.goes_up
        if call.waits:
            self.tally.waits[f"{line}: {call.waits}"] += 1


def _on_cpu(call: Call, args: Any) -> Any:
    """Arguments for the CPU's kernel."""
    if call.name == "aten::histc" and not args[0].is_floating_point():  # CUDA alone counts integers
        return (args[0].float(), *args[1:])
    return args


def on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Named arguments for the CPU's kernel."""
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


def why_not() -> str:
    """Why this PyTorch can't have the device; empty where it can."""
    from torch.utils import backend_registration

    missing = [
        name
        for name, owner in (
            ("_setup_privateuseone_for_python_backend", backend_registration),
            ("_set_only_lift_cpu_tensors", torch._C),
            ("_DisableTorchDispatch", torch._C),
        )
        if not hasattr(owner, name)
    ]
    return f"PyTorch {torch.__version__} has no {', '.join(missing)}: no device in Python" if missing else ""


def _register() -> None:
    """Make the device known to PyTorch, once in a process."""
    if hasattr(torch, NAME):
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]


@contextmanager
def pretend_gpu(*, float64: bool = True) -> Iterator[Gpu]:
    """Give this PyTorch the device `pretend` for a while, with or without float64."""
    _register()
    gpu = Gpu(float64=float64)
    built_in = functional.scaled_dot_product_attention

    def attention(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        chosen = plain_attention if isinstance(query, PretendTensor) else built_in
        return chosen(query, *rest, **named)

    swapped = torch.__future__.get_swap_module_params_on_conversion()
    lifted = torch._C._only_lift_cpu_tensors()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else tied weights part when a module moves
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with (
            mock.patch.object(functional, "scaled_dot_product_attention", attention),
            mock.patch.object(compute, "WITHOUT_FLOAT64", frozenset() if float64 else frozenset({NAME})),
            torch.autograd.set_multithreading_enabled(False),  # a mode belongs to its thread
            gpu,
        ):
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_swap_module_params_on_conversion(swapped)
