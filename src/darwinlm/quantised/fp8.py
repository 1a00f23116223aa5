"""8-bit floats with a scale for each block, or for the whole weight, as DeepSeek and Qwen publish them.

`quant_method` fp8. `weight_scale_inv` is what the values are multiplied by; older files call it `weight_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from darwinlm.quantised.format import FLOATS, Format, scaled

SCALES = (".weight_scale_inv", ".weight_scale")


def formats(config: Mapping[str, Any]) -> tuple[Format, ...]:
    """Formats of a quantization_config."""
    block = block_of(config.get("weight_block_size"))
    return tuple(scaled_weight(scale, "F8_E4M3 F8_E5M2", block) for scale in SCALES)


def scaled_weight(scale: str, types: str, block: tuple[int, int] | None, **optional: str) -> Format:
    """The format of numbers of some `types` with scales; optional zeros have the type of the numbers."""
    needed = {scale: f"{FLOATS} F8_E8M0", ".weight": types}
    return Format(needed, partial(_weight, scale, block), lambda shapes, _: shapes[".weight"], optional)


def _weight(scale: str, block: tuple[int, int] | None, parts: Mapping[str, Tensor]) -> Tensor:
    return scaled(parts[".weight"], parts[scale], parts.get(".weight_zero_point", 0.0), block=block)


def block_of(given: Any) -> tuple[int, int] | None:
    """Rows and columns of a block in a configuration. Raises ValueError."""
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != 2 or not all(type(size) is int and size > 0 for size in given):
        raise ValueError(f"a block of {given} isn't a number of rows and columns")
    return given[0], given[1]
