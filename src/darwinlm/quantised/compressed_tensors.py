"""Formats of compressed-tensors: packed integers with group scales, and integers or 8-bit floats with scales.

`quant_method` compressed-tensors. A symmetric integer is stored with half of its range added, as are zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from darwinlm.quantised.format import FLOATS, Format, Shape, scaled, unpacked
from darwinlm.quantised.fp8 import block_of, scaled_weight

READABLE = frozenset({"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"})
ZERO, GROUPS = ".weight_zero_point", ".weight_g_idx"


def formats(config: Mapping[str, Any]) -> tuple[Format, ...]:
    """Formats of a quantization_config. Raises ValueError, which names one that can't be read."""
    groups = config.get("config_groups", {})
    groups = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    named = [config.get("format"), *(group.get("format") for group in groups)]
    for name in named:
        if name is not None and name not in READABLE:
            raise ValueError(f"the format {name}")
    sparse = config.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense":
        raise ValueError(f"the sparse format {sparse['format']}")
    blocks = (weights.get("block_structure") for group in groups if isinstance(weights := group.get("weights"), dict))
    block = next(filter(None, map(block_of, blocks)), None)
    plain = scaled_weight(".weight_scale", "F8_E4M3 F8_E5M2 I8", block, **{ZERO: "I8 F8_E4M3", GROUPS: "I32 I64"})
    packed = Format(
        {".weight_packed": "I32", ".weight_shape": "I64 I32", ".weight_scale": FLOATS},
        _weight,
        _shape,
        {ZERO: "I32", GROUPS: "I32 I64"},
    )
    return packed, plain


def _shape(shapes: Mapping[str, Shape], read: Callable[[str], Tensor]) -> Shape:
    rows, columns = map(int, read(".weight_shape").tolist())
    words, bits = shapes[".weight_packed"][1], shapes[".weight_packed"][1] * 32 // max(columns, 1)
    if rows != shapes[".weight_packed"][0] or not bits or -(-columns * bits // 32) != words:
        raise ValueError(f"{list(shapes['.weight_packed'])} words don't fit a weight {[rows, columns]}")
    return rows, columns


def _weight(parts: Mapping[str, Tensor]) -> Tensor:
    packed, scales = parts[".weight_packed"], parts[".weight_scale"]
    rows, columns = map(int, parts[".weight_shape"].tolist())
    bits = packed.shape[1] * 32 // columns
    zeros: Tensor | float = 2.0 ** (bits - 1)
    if ZERO in parts:
        zeros = unpacked(parts[ZERO].T, bits).T[:rows]
    values = unpacked(packed, bits)[:, :columns]
    return scaled(values, scales, zeros, groups=parts.get(GROUPS))
