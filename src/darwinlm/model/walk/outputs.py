"""The output projection of a module, and the norm behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import Family
from darwinlm.model.families.parts import ModuleKind


def output_projection(block: nn.Module, family: Family, kind: ModuleKind) -> nn.Linear | None:
    """The output projection of a module; None if the module is absent or a mixture of experts."""
    part = family.module(kind)
    if part.chain:
        output = block.get_submodule(f"{part.prefix}{part.output}")
        return output if isinstance(output, nn.Linear) else None
    return getattr(getattr(block, part.name, None), part.output, None)


def norm_divisor(checkpoint: Checkpoint, kind: ModuleKind, output: Tensor) -> Tensor | None:
    """Divisor, [..., 1] float32, that the norm behind a module applies to its output [..., r]; None without a norm."""
    if checkpoint.family.module(kind).post_norm is None:
        return None
    mean_square = output.float().square().mean(-1, keepdim=True)
    epsilon: float = checkpoint.config.rms_norm_eps
    return (mean_square + epsilon).sqrt()


@torch.no_grad()
def norm_gain(block: nn.Module, checkpoint: Checkpoint, kind: ModuleKind) -> Tensor | None:
    """Gain of the norm behind a module of a loaded block, [r] float32; None without a norm."""
    part = checkpoint.family.module(kind)
    if part.post_norm is None:
        return None
    norm = getattr(block, part.post_norm)
    # The norm of a vector of ones is its gain, however the norm stores it.
    gain: Tensor = norm(torch.ones_like(norm.weight)).float()
    return gain
