"""GPTQ: integers packed along the inputs, with a scale and a zero for each group of inputs and output.

`quant_method` gptq. The first version of the format stores zeros minus one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from darwinlm.quantised.format import FLOATS, Format, Shape, len_blocks, scaled, unpacked

FIRST = (None, "gptq")
SECOND = "gptq_v2"


def formats(config: Mapping[str, Any]) -> tuple[Format, ...]:
    """Formats of a quantization_config. Raises ValueError, which names one that can't be read."""
    version = config.get("checkpoint_format")
    if version not in (*FIRST, SECOND):
        raise ValueError(f"the format {version}")
    size = config.get("group_size")
    if type(size) is not int or (size <= 0 and size != -1):
        raise ValueError(f"groups of {size} columns")
    needed = {".qweight": "I32", ".qzeros": "I32", ".scales": FLOATS}
    weight = partial(_weight, 1 if version in FIRST else 0, size)
    return (Format(needed, weight, _shape, {".g_idx": "I32"}),)


def _shape(shapes: Mapping[str, Shape], _: Callable[[str], Tensor]) -> Shape:
    words, outputs = shapes[".qweight"]
    bits = shapes[".qzeros"][1] * 32 // max(outputs, 1)
    if not bits or shapes[".scales"][1] != outputs or shapes[".scales"][0] != shapes[".qzeros"][0]:
        raise ValueError(f"scales {list(shapes['.scales'])} don't fit a weight of {outputs} rows")
    return outputs, words * 32 // bits


def _weight(offset: int, size: int, parts: Mapping[str, Tensor]) -> Tensor:
    outputs = parts[".qweight"].shape[1]
    bits = parts[".qzeros"].shape[1] * 32 // outputs
    values = unpacked(parts[".qweight"].T, bits)
    zeros = unpacked(parts[".qzeros"], bits).T[:outputs] + offset & 2**bits - 1
    groups, scales = parts.get(".g_idx"), parts[".scales"].T
    if groups is None:
        groups = torch.arange(values.shape[1]) // (size if size > 0 else values.shape[1])
    if len_blocks(values.shape[1], size if size > 0 else values.shape[1]) != scales.shape[1]:
        raise ValueError(f"{scales.shape[1]} groups don't fit {values.shape[1]} columns in groups of {size}")
    return scaled(values, scales, zeros, groups=groups)
