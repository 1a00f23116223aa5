"""What formats of quantised weights share: their description, unpacked integers, and values times scales.

Letters: r rows (outputs), c columns (inputs), R and G rows and columns of the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Shape = tuple[int, ...]

FLOATS = "F32 F16 BF16"


@dataclass(frozen=True)
class Format:
    """How weights are stored: as several tensors, whose names have different endings.

    Attributes:
        needed: Types of the tensors that every quantised weight has, by ending, as safetensors names them. Only
            quantised weights have the first one.
        weight: The weight in float32 from its tensors, by ending. Raises ValueError if their shapes don't fit.
        shape: Shape of the weight from those of its tensors and from small tensors. Raises ValueError as well.
        optional: Types of the tensors that a weight may have.
        name: Ending of the weight in the model.
    """

    needed: Mapping[str, str]
    weight: Callable[[Mapping[str, Tensor]], Tensor]
    shape: Callable[[Mapping[str, Shape], Callable[[str], Tensor]], Shape]
    optional: Mapping[str, str] = field(default_factory=dict)
    name: str = ".weight"

    @property
    def types(self) -> dict[str, str]:
        """Types of all tensors by ending."""
        return {**self.needed, **self.optional}


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Unsigned integers [r, 32 n / bits] from words [r, n], the lowest bits first.

    Raises ValueError if integers would lie across bytes.
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"it has {bits} bits for each number, not 2, 4 or 8")
    octets = words.contiguous().view(torch.uint8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return octets.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and(2**bits - 1).flatten(-2)


def scaled(
    values: Tensor,
    scales: Tensor,
    zeros: Tensor | float = 0.0,
    *,
    block: tuple[int, int] | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """`(values - zeros) scales` in float32, [r, c]; scales and zeros are [R, G], or one number.

    A scale belongs to a `block` of rows and columns, the last of which may be smaller; by default all blocks are equal.
    `groups` [c] are the columns of the scales. Raises ValueError if the scales don't fit.
    """
    scales = scales.reshape(scales.shape if scales.ndim == values.ndim else (-1, 1)).float()
    if block is None or tuple(map(len_blocks, values.shape, block)) != tuple(scales.shape):
        block = values.shape[0] // max(scales.shape[0], 1), values.shape[1] // max(scales.shape[1], 1)
    fits = min(block) > 0 and len_blocks(values.shape[0], block[0]) == scales.shape[0]
    if not fits or (groups is None and len_blocks(values.shape[1], block[1]) != scales.shape[1]):
        raise ValueError(f"scales {list(scales.shape)} don't fit a weight {list(values.shape)}")
    if groups is None:
        groups = torch.arange(values.shape[1]) // block[1]
    elif len(groups) != values.shape[1] or not 0 <= int(groups.min()) <= int(groups.max()) < scales.shape[1]:
        raise ValueError("the groups of the columns don't fit the scales")
    rows = torch.arange(values.shape[0]) // block[0]

    def spread(numbers: Tensor) -> Tensor:
        return numbers.index_select(0, rows).index_select(1, groups) if numbers.shape != (1, 1) else numbers

    result = values.float()
    result -= spread(zeros.float().reshape(scales.shape)) if isinstance(zeros, Tensor) else zeros
    return result.mul_(spread(scales))


def len_blocks(size: int, block: int) -> int:
    """Number of blocks of a size, the last of which may be smaller."""
    return -(-size // block)
