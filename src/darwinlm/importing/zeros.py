"""Detection of units without effect, from their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from darwinlm.export.sizes import BlockSizes, head_owners, split_rows
from darwinlm.families.parts import Attention, Mlp, Part, RowUnit

Tensors = Mapping[str, Tensor]


def useful_units(tensors: Tensors, part: Part, sizes: BlockSizes, columns: int) -> list[int]:
    """Query heads or channels with an effect; one is kept if the output has a bias.

    The output columns of a useful head and its values aren't zero; nor is a projection of a useful channel (silu and
    gelu map zero to zero).
    """
    output, rows = tensors[f"{part.output}.weight"].ne(0).any(0), sizes.rows(columns)
    if isinstance(part, Attention):
        values = _rows(tensors, part, part.key_value[1], rows)[-1].reshape(-1, columns).any(-1)
        useful = output.reshape(-1, columns).any(-1) & values[list(head_owners(sizes))]
    else:
        inputs = dict.fromkeys(part.inputs) if isinstance(part, Mlp) else ()
        useful = torch.stack([output, *(each for name in inputs for each in _rows(tensors, part, name, rows))]).all(0)
    return useful.nonzero()[:, 0].tolist() or ([0] if _has_bias(tensors, part.output) else [])


def _rows(tensors: Tensors, part: Part, name: str, sizes: Mapping[RowUnit, int]) -> list[Tensor]:
    """Masks of the nonzero rows of a projection, including its bias; one mask for each fused part."""
    nonzero = tensors[f"{name}.weight"].ne(0).any(1)
    bias = tensors.get(f"{name}.bias")
    return split_rows(nonzero if bias is None else nonzero | bias.ne(0), part.segments[name], sizes)


def _has_bias(tensors: Tensors, name: str) -> bool:
    bias = tensors.get(f"{name}.bias")
    return bias is not None and bool(bias.ne(0).any())
