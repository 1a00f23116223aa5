"""The database on disk: one safetensors file per block, with named tensors for each module.

For each module it holds one packed factor over all columns. For each variant (number of query heads per KV group) it
holds the columns in removal order, the error of every width and, with output gradients, the estimated loss. Everything
else follows from these and the weights. A mixture has these for each expert. Whole experts are removed in the order of
their losses, or of their errors without output gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.model.families.parts import ModuleKind


def block_file(block: int) -> str:
    """File name of one block."""
    return f"block_{block:04d}.safetensors"


@dataclass(frozen=True)
class Curve:
    """One variant of a module.

    Attributes:
        columns: [p] int64, the columns that may be kept, last removed first.
        errors: [p + 1] float64, squared output error of keeping the first k of them.
        losses: [p + 1] float64, estimated loss of the model in nats per token; None without output gradients.
    """

    columns: Tensor
    errors: Tensor
    losses: Tensor | None = None


def module_tensors(kind: ModuleKind, curves: Mapping[int, Curve], packed: Tensor) -> dict[str, Tensor]:
    """Named tensors of one module: its curves by variant, the last of which has every column, and that one's factor.

    `packed` is as `pack_lower` writes it.
    """
    tensors = {f"{kind}.factor": packed}
    for variant, curve in curves.items():
        tensors[f"{kind}.{variant}.columns"] = curve.columns.to(torch.int32)
        tensors[f"{kind}.{variant}.errors"] = curve.errors
        if curve.losses is not None:
            tensors[f"{kind}.{variant}.losses"] = curve.losses
    return tensors


def experts_tensors(experts: Iterable[tuple[Curve, Tensor]]) -> dict[str, Tensor]:
    """Named tensors of a mixture: curves and packed factors of its experts along a new first dimension."""
    curves, packed = zip(*experts, strict=True)
    columns, errors = torch.stack([curve.columns for curve in curves]), torch.stack([curve.errors for curve in curves])
    losses = [curve.losses for curve in curves if curve.losses is not None]
    curve = Curve(columns, errors, torch.stack(losses) if losses else None)
    return module_tensors("mlp", {1: curve}, torch.stack(packed))
