"""Detection of units without effect, from their weights.

Letters: m residual width, h columns of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from darwinlm.export.sizes import split_rows
from darwinlm.families.parts import Attention, Mlp, RowUnit

Tensors = Mapping[str, Tensor]
Sizes = Mapping[RowUnit, int]


def useful_heads(tensors: Tensors, part: Attention, sizes: Sizes, owners: tuple[int, ...], columns: int) -> list[int]:
    """Query heads with an effect: their output columns and their values aren't zero.

    `sizes` are the rows of queries and of keys, `owners` the KV head of each query head.
    """
    output = tensors[f"{part.output}.weight"].reshape(-1, len(owners), columns)
    written = output.ne(0).any(-1).any(0)
    values = _rows(tensors, part, part.key_value[1], sizes)[-1].reshape(-1, columns).any(-1)
    kept = [head for head, owner in enumerate(owners) if bool(written[head]) and bool(values[owner])]
    return kept or ([0] if _has_bias(tensors, part.output) else [])


def useful_channels(tensors: Tensors, part: Mlp) -> list[int]:
    """Channels with an effect: none of their projections is zero (silu and gelu map zero to zero)."""
    useful = tensors[f"{part.output}.weight"].ne(0).any(0)
    for name in dict.fromkeys(part.inputs):
        for rows in _rows(tensors, part, name, {"channel": len(useful)}):
            useful = useful & rows
    kept = [int(channel) for channel in useful.nonzero()[:, 0]]
    return kept or ([0] if _has_bias(tensors, part.output) else [])


def _rows(tensors: Tensors, part: Attention | Mlp, name: str, sizes: Sizes) -> list[Tensor]:
    """Masks of the nonzero rows of a projection, including its bias; one mask for each fused part."""
    nonzero = tensors[f"{name}.weight"].ne(0).any(1)
    bias = tensors.get(f"{name}.bias")
    return split_rows(nonzero if bias is None else nonzero | bias.ne(0), part.segments[name], sizes)


def _has_bias(tensors: Tensors, name: str) -> bool:
    bias = tensors.get(f"{name}.bias")
    return bias is not None and bool(bias.ne(0).any())
