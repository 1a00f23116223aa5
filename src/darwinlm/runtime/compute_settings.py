"""The settings of a run's device and arithmetic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from darwinlm.runtime.quantities import ByteCount, Whole
from darwinlm.runtime.section import Section

GPU_TOKENS, CPU_TOKENS = 4096, 1024
"""Tokens in one forward pass by default. A CPU has fewer, which need less memory."""


class ComputeSettings(Section):
    """Device and precision of the computation."""

    device: str = "auto"
    """`auto` (the first NVIDIA or AMD GPU if there is one), `cpu`, `cuda`, `cuda:1` ..., `mps` (Apple's)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Element type of forward and backward passes. `auto` is bfloat16 on GPUs and on processors that are fast with it
    (AMX, or AMD's AVX-512), else float32. Second moments, factors, KL and trained weights are always float32 or
    better."""
    batch_tokens: Whole | None = Field(None, gt=0)
    """Tokens in one forward pass, and in one micro-batch of recovery. None takes 4096, on a CPU 1024. Fewer need less
    memory."""
    memory: ByteCount | None = Field(None, gt=0)
    """Memory of the device that a run may take, main memory without a GPU: 6GB. None takes what the stages need, and
    for caches up to half of the free main memory, or nearly all of a GPU's."""
