"""Quantised weights of checkpoints that have no other original: FP8, and MXFP4 of gpt-oss.

FP8 is an 8-bit float times a scale for each block of rows and columns, each row, or the whole weight. MXFP4 is a 4-bit
float times a power of two for every 32 of them.

Letters: r rows (outputs), c columns (inputs), R and C rows and columns of the scales, e experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from darwinlm.runtime.errors import CheckpointError, first_line
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import shorten

Result = TypeVar("Result")
Shape = tuple[int, ...]

UNUSED = ("input_scale", "input_zero_point", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale")
"""Last words of names of tensors for quantised activations and KV caches."""

DAMAGED = (ValueError, KeyError, TypeError, IndexError, RuntimeError)
"""Errors of formulas on tensors that don't fit."""

FLOATS_8 = "F8_E4M3 F8_E5M2"
FP8_OF_COMPRESSED_TENSORS = ("float-quantized", "naive-quantized")

BIAS = 127
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Absolute values of the codes (OCP Microscaling Formats 1.0, E2M1)."""


@dataclass(frozen=True)
class WeightFormat:
    """How weights are stored: as two tensors, whose names have different endings.

    Attributes:
        values, scales: Endings of the numbers and of their scales. Only quantised weights have scales.
        types: Types of both as safetensors names them.
        weight: The weight in float32 from numbers and scales. Raises ValueError if their shapes don't fit.
        shape: Shape of the weight from those of numbers and scales. Raises ValueError as well.
        name: Ending of the weight in the model.
    """

    values: str
    scales: str
    types: tuple[str, str]
    weight: Callable[[Tensor, Tensor], Tensor]
    shape: Callable[[Shape, Shape], Shape]
    name: str


@dataclass(frozen=True)
class Packed:
    """A quantised weight: its format, the names of its numbers and scales, and the model's place for messages."""

    format: WeightFormat
    names: tuple[str, str]
    where: Path | str

    def shape(self, stored: Mapping[str, tuple[str, Shape]]) -> Shape:
        """Its shape, from types and shapes by stored name. Raises CheckpointError."""
        for name, types in zip(self.names, self.format.types, strict=True):
            if stored[name][0] not in types.split():
                raise CheckpointError(
                    f"{self.where}: the tensor {shorten(name)} holds {stored[name][0]} numbers: fetch the model again"
                )
        return self._of(self.format.shape, *(stored[name][1] for name in self.names))

    def weight(self, stored: Callable[[str], Tensor]) -> Tensor:
        """The weight in float32. Raises CheckpointError if its tensors don't fit each other."""
        return self._of(self.format.weight, *map(stored, self.names))

    def _of(self, formula: Callable[..., Result], *arguments: object) -> Result:
        try:
            return formula(*arguments)
        except DAMAGED as error:
            reason = f"the weight of {shorten(self.names[0])} is damaged: {first_line(error)}"
            raise CheckpointError(f"{self.where}: {reason}: fetch the model again") from error


def formats_of(plain: JsonObject, path: Path | str) -> tuple[WeightFormat, ...]:
    """Formats of the quantised weights that a config.json describes; none of a plain model.

    Raises CheckpointError if they can't be read.
    """
    config = plain.get("quantization_config")
    if config is None:
        return ()
    method = config.get("quant_method") if isinstance(config, Mapping) else config
    try:
        if method == "fp8":
            block = _block(config.get("weight_block_size"))
            return tuple(_fp8(scales, block) for scales in (".weight_scale_inv", ".weight_scale"))
        if method == "compressed-tensors":
            return (_fp8(".weight_scale", _compressed_block(config)),)
        if method == "mxfp4":
            return (WeightFormat("_blocks", "_scales", ("U8", "U8"), _mxfp4_weight, _mxfp4_shape, ""),)
    except (ValueError, TypeError, AttributeError) as error:
        method = f"{method} with {first_line(error)}"
    raise CheckpointError(
        f"{path}: the model is quantised (quantization_config says {shorten(method)}): prune the model that it was "
        "made from, and quantise the result. Only FP8, FP8 of compressed-tensors, and MXFP4 are read"
    )


def packed_weights(names: Iterable[str], formats: Sequence[WeightFormat], where: Path | str) -> dict[str, Packed]:
    """The quantised weights among stored tensors, by the name of the weight.

    Raises CheckpointError if the numbers of one are missing.
    """
    stored = set(names)
    weights: dict[str, Packed] = {}
    for weight_format in formats:
        for scales in [name for name in stored if name.endswith(weight_format.scales)]:
            stem = scales.removesuffix(weight_format.scales)
            values = stem + weight_format.values
            if values not in stored:
                raise CheckpointError(f"{where} holds {shorten(scales)} without {values}: fetch the model again")
            weights.setdefault(stem + weight_format.name, Packed(weight_format, (values, scales), where))
    if formats and not weights:
        endings = " or ".join(weight_format.scales for weight_format in formats)
        raise CheckpointError(
            f"{where}: config.json says that weights are quantised, but none has {endings}: fetch the model again"
        )
    return weights


def _fp8(scales: str, block: tuple[int, int] | None) -> WeightFormat:
    """DeepSeek and Qwen call what the values are multiplied by `weight_scale_inv`, others `weight_scale`."""
    types = (FLOATS_8, "F32 F16 BF16 F8_E8M0")
    return WeightFormat(
        ".weight", scales, types, partial(_scaled, configured=block), partial(_fp8_shape, configured=block), ".weight"
    )


def _block(size: object) -> tuple[int, int] | None:
    """Rows and columns of a block in a configuration. Raises ValueError."""
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(count) is int and count > 0 for count in size):
        raise ValueError(f"a block of {size}, not a number of rows and columns")
    return size[0], size[1]


def _compressed_block(config: JsonObject) -> tuple[int, int] | None:
    """The block of a configuration of compressed-tensors. Raises ValueError, which names a format other than FP8."""
    groups = [group for group in config.get("config_groups", {}).values() if isinstance(group, dict)]
    for name in (config.get("format"), *(group.get("format") for group in groups)):
        if name is not None and name not in FP8_OF_COMPRESSED_TENSORS:
            raise ValueError(f"the format {name}")
    sparse = config.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense":
        raise ValueError(f"the sparse format {sparse['format']}")
    weights = [group["weights"] for group in groups if isinstance(group.get("weights"), dict)]
    if any(settings.get("type", "float") != "float" for settings in weights):
        raise ValueError("integers")
    return next(filter(None, (_block(settings.get("block_structure")) for settings in weights)), None)


def _scaled(values: Tensor, scales: Tensor, *, configured: tuple[int, int] | None) -> Tensor:
    """Values times scales in float32, [r, c]; scales are [R, C], [R], or one number."""
    block = _block_size(tuple(values.shape), tuple(scales.shape), configured=configured)
    counts = [-(-size // block_size) for size, block_size in zip(values.shape, block, strict=True)]
    scales = scales.reshape(counts).float()
    if scales.numel() > 1:
        for axis, block_size in enumerate(block):
            scales = scales.index_select(axis, torch.arange(values.shape[axis]) // block_size)
    return values.float().mul_(scales)


def _block_size(values: Shape, scales: Shape, *, configured: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns that share a scale, the last of which may be fewer: the configured ones, or equal parts.

    Raises ValueError if the scales don't fit.
    """
    rows, columns = values
    counts = scales if len(scales) == 2 else (*scales, 1, 1)[:2]
    equal_parts = tuple(size // max(count, 1) for size, count in zip(values, counts, strict=True))
    for block in (configured, equal_parts):
        if block and min(block) and (-(-rows // block[0]), -(-columns // block[1])) == counts:
            return block[0], block[1]
    raise ValueError(f"scales {list(scales)} don't fit a weight {list(values)}")


def _fp8_shape(values: Shape, scales: Shape, *, configured: tuple[int, int] | None) -> Shape:
    _block_size(values, scales, configured=configured)
    return values


def _mxfp4_shape(blocks: Shape, scales: Shape) -> Shape:
    experts, rows, groups, octets = blocks
    if scales != (experts, rows, groups):
        raise ValueError(f"scales {list(scales)} don't fit blocks {list(blocks)}")
    return experts, groups * octets * 2, rows


def _mxfp4_weight(blocks: Tensor, scales: Tensor) -> Tensor:
    """Weights [e, c, r] from blocks [e, r, C, 16] with two numbers in a byte, the first in the low bits."""
    table = torch.tensor([*VALUES, *(-value for value in VALUES)])
    values = table[torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).int()]
    return torch.ldexp(values, scales.int().unsqueeze(-1) - BIAS).flatten(2).mT.contiguous()
