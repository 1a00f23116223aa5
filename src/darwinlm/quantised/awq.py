"""AWQ: 4-bit integers packed along the outputs in an order for its kernels, with a scale and a zero for each group.

`quant_method` awq, in its version `gemm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from darwinlm.quantised.format import FLOATS, Format, Shape, scaled, unpacked

BITS, VALUES = 4, 8
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Places of eight successive outputs in a word, from the lowest bits."""


def formats(config: Mapping[str, Any]) -> tuple[Format, ...]:
    """Formats of a quantization_config. Raises ValueError, which names one that can't be read."""
    version = config.get("version", config.get("checkpoint_format", "gemm"))
    if str(version).lower() != "gemm":
        raise ValueError(f"the version {version}")
    if config.get("bits", config.get("w_bit", BITS)) != BITS:
        raise ValueError(f"{config.get('bits', config.get('w_bit'))} bits for each number")
    return (Format({".qweight": "I32", ".qzeros": "I32", ".scales": FLOATS}, _weight, _shape),)


def _shape(shapes: Mapping[str, Shape], _: Callable[[str], Tensor]) -> Shape:
    columns, words = shapes[".qweight"]
    if shapes[".qzeros"] != (shapes[".scales"][0], words) or shapes[".scales"][1] != words * VALUES:
        raise ValueError(f"scales {list(shapes['.scales'])} don't fit a weight of {words * VALUES} rows")
    return words * VALUES, columns


def _weight(parts: Mapping[str, Tensor]) -> Tensor:
    return scaled(_outputs(parts[".qweight"]), parts[".scales"].T, _outputs(parts[".qzeros"]))


def _outputs(words: Tensor) -> Tensor:
    """Integers [r, n] from words [n, r / 8]."""
    return unpacked(words, BITS).reshape(len(words), -1, VALUES)[:, :, list(ORDER)].flatten(1).T
