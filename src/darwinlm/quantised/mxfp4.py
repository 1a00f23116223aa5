"""MXFP4: 4-bit floats with a power of two for every 32 of them, as gpt-oss stores its experts.

`quant_method` mxfp4. Blocks are [e, r, G, 16] with two numbers in a byte, and the model's weights [e, c, r].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from darwinlm.quantised.format import Format, Shape, unpacked

BIAS = 127
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Absolute values of the codes (OCP Microscaling Formats 1.0, E2M1)."""


def formats(_: Mapping[str, Any]) -> tuple[Format, ...]:
    """Formats of any quantization_config of MXFP4."""
    return (Format({"_blocks": "U8", "_scales": "U8"}, _weight, _shape, name=""),)


def _shape(shapes: Mapping[str, Shape], _: Callable[[str], Tensor]) -> Shape:
    experts, rows, groups, octets = shapes["_blocks"]
    if shapes["_scales"] != (experts, rows, groups):
        raise ValueError(f"scales {list(shapes['_scales'])} don't fit blocks {list(shapes['_blocks'])}")
    return experts, groups * octets * 2, rows


def _weight(parts: Mapping[str, Tensor]) -> Tensor:
    table = torch.tensor([*VALUES, *(-value for value in VALUES)])
    values = table[unpacked(parts["_blocks"], 4).int()]
    return torch.ldexp(values, parts["_scales"].int().unsqueeze(-1) - BIAS).flatten(2).mT.contiguous()
