"""Device of a run, and element type of its passes."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import RecipeError, first_line

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

AMPERE = 8
"""Compute capability of the first NVIDIA GPUs with bfloat16."""

SONOMA = (14, 0)
"""First macOS with bfloat16 on Apple's GPUs."""

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices without float64: Apple's GPUs."""


def resolve_device(name: str) -> torch.device:
    """The device named in a recipe, with the index of a GPU; each process has its own.

    `auto` doesn't choose Apple's GPU, on which nothing has run yet.

    Raises RecipeError if this machine doesn't have it, ParallelError if there are more processes than GPUs.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", parallel.gpu())
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"compute.device: '{name}' is not a device; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda":
        _check_cuda(device)
    elif device.type != "cpu":
        _check_other(device)
    return device


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise RecipeError(f"compute.device: this machine's PyTorch finds no GPU for '{device}'; use auto or cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        existing = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise RecipeError(f"compute.device: there is no '{device}' here, {existing}")
    if device.index is not None and parallel.size() > 1:
        raise RecipeError(
            f"compute.device: '{device}' is one GPU, but {parallel.size()} processes were started: use cuda, which "
            "assigns a GPU to each"
        )


def _check_other(device: torch.device) -> None:
    """Refuse devices that PyTorch only knows by name."""
    if device.type == "mps" and parallel.size() > 1:
        raise RecipeError(f"compute.device: mps is one GPU, but {parallel.size()} processes were started: start one")
    try:
        usable = device.type != "meta" and bool(torch.ones((), device=device) == 1)
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise RecipeError(f"compute.device: '{device}' can't be used here ({first_line(error)}); use auto") from error
    if not usable:
        raise RecipeError(f"compute.device: '{device}' can't run a model; use auto, cpu or cuda")


def exact_device(device: torch.device) -> torch.device:
    """Where a device's float64 products are computed: on the device itself, or on the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def exact(tensor: Tensor) -> Tensor:
    """The tensor where its float64 products are computed; copied only if its device has no float64."""
    return tensor.to(exact_device(tensor.device))


def all_finite(tensor: Tensor) -> Tensor:
    """Whether all numbers of a tensor are finite, [] bool on its device.

    The extremes of a tensor with a NaN are NaN. One pass computes both, without a tensor of truth values: on a CPU a
    multiple of the speed of `isfinite` in bfloat16.
    """
    if not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    return torch.isfinite(torch.stack(torch.aminmax(tensor))).all()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device. On the way to a GPU it is pinned first: else the host would wait for all its work."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def await_device(device: torch.device) -> None:
    """Wait for all work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def now(device: torch.device) -> float:
    """Seconds on a clock, after all work of the device."""
    await_device(device)
    return time.perf_counter()


def fast_dtype(device: torch.device) -> str:
    """bfloat16 if it is fast: on GPUs that support it, on CPUs with matrix tiles, and on AMD's CPUs with AVX-512.

    Other CPUs use float32. Relative to it, products of bfloat16 took twice the time on Intel's CPUs with only AVX-512,
    and half the time on AMD's; older CPUs don't support the type. The choice depends on features of the CPU, not on a
    measurement, so that a resumed run finds its results.
    """
    quick = _multiplies_quickly() if device.type == "cpu" else gpu_has_bfloat16(device)
    return "bfloat16" if quick else "float32"


def gpu_has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU supports bfloat16: NVIDIA's from Ampere (8.0) on, Apple's from macOS 14 on.

    A GPU of another machine is assumed to.
    """
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(*SONOMA)
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.cuda is None:
        return True
    return torch.cuda.get_device_capability(device)[0] >= AMPERE


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The element type named by an option. Raises RecipeError if it isn't known."""
    if name not in ("auto", *DTYPES):
        raise RecipeError(f"dtype {name}: use auto, {', '.join(DTYPES)}")
    return DTYPES[fast_dtype(device) if name == "auto" else name]


def has_matrix_tiles() -> bool:
    """Whether the CPU has matrix tiles for bfloat16 (AMX)."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)  # older releases have no public function
    return bool(has_tiles and has_tiles())


def _multiplies_quickly() -> bool:
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    vectors = bool(able.get("avx512_bf16", False)) and str(able.get("cpu_name", "")).startswith("AMD")
    # ATEN_CPU_CAPABILITY=avx2 hides the vectors from PyTorch, but not from the list of what the processor has.
    limited = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return (vectors or has_matrix_tiles()) and not limited
