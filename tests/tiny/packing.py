"""Quantised checkpoints: 8-bit floats with scales beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny.damage import edit_config, edit_weights

Tensors = dict[str, Tensor]
Packed = tuple[Tensors, Tensor]
"""Stored tensors by ending, and the weight that they stand for."""


def with_scale(weight: Tensor, kind: torch.dtype, block: tuple[int, int] | None, ending: str) -> Packed:
    """Numbers with a scale for each block, or one for all."""
    values = torch.randint(-100, 100, weight.shape).float().to(kind)
    if block is None:
        scale = torch.tensor(0.01)
        return {".weight": values, ending: scale}, values.float() * scale
    shape = [-(-size // part) for size, part in zip(weight.shape, block, strict=True)]
    scale = 0.01 * torch.rand(shape) + 0.001
    wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return {".weight": values, ending: scale}, values.float() * wide[: weight.shape[0], : weight.shape[1]]


def quantise(folder: Path, how: Callable[[Tensor], Packed], config: dict[str, Any]) -> Tensors:
    """Replace the projections of a plain checkpoint; returns the weights that they stand for now."""
    expected = {}

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            stored, expected[name] = how(tensors.pop(name))
            tensors |= {name.removesuffix(".weight") + ending: each for ending, each in stored.items()}

    edit_weights(folder, change)
    edit_config(folder, quantization_config=config)
    return expected
