"""What all steps of a run have in common; it never changes while a step works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import STAGES
from darwinlm.runtime.compute import DTYPES, fast_dtype, gpu_has_bfloat16, resolve_device
from darwinlm.runtime.compute_settings import CPU_TOKENS, GPU_TOKENS, ComputeSettings
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.memory import grow_segments, set_limit
from darwinlm.runtime.time_limit import TimeLimit


@dataclass(frozen=True)
class Context:
    """Device, element type and size of forward passes, output folder, and receiver of messages.

    Attributes:
        dtype: Element type of forward passes.
        batch_tokens: Tokens in one forward pass.
        folder: Output folder of the run.
        reporter: Receiver of messages and progress; silent in all processes but the first.
        limit: Time limit; None without one.
    """

    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    folder: Path
    reporter: Reporter
    limit: TimeLimit | None = None

    @property
    def arithmetic(self) -> Mapping[str, str]:
        """Properties of the machine on which results of computations depend."""
        return {"dtype": str(self.dtype), "device": self.device.type}

    def path(self, step: str) -> Path:
        """Folder of a step of this run."""
        return self.folder / STAGES / step


def open_context(compute: ComputeSettings, folder: Path, reporter: Reporter) -> tuple[Context, ComputeSettings]:
    """The context of a run, and its settings with what they leave to the device.

    Raises RecipeError if this machine has no such device, or the device lacks the element type or the memory.
    """
    parallel.init_from_environment()
    reporter = reporter if parallel.is_main() else Reporter(quiet=True)
    with parallel.agree():
        device = resolve_device(compute.device)
        compute = settled(compute, device)
        set_limit(device, compute.memory)
        grow_segments(device)
    dtype, batch_tokens = DTYPES[compute.dtype], compute.batch_tokens or GPU_TOKENS
    return Context(device, dtype, batch_tokens, folder, reporter), compute


def settled(compute: ComputeSettings, device: torch.device) -> ComputeSettings:
    """Settings with a device's element type and pass, where left open. Raises RecipeError if it lacks the type."""
    if compute.dtype == "bfloat16" and not gpu_has_bfloat16(device):
        raise RecipeError(
            f"compute.dtype=bfloat16: {torch.cuda.get_device_name(device)} doesn't support bfloat16: use float32, "
            "or auto"
        )
    if compute.dtype == "auto":
        compute = compute.model_copy(update={"dtype": fast_dtype(device)})
    if compute.batch_tokens is None:
        tokens = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
        compute = compute.model_copy(update={"batch_tokens": tokens})
    return compute
