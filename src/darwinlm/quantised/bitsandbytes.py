"""bitsandbytes: 4-bit codes (NF4, FP4) with a scale for each run of weights, and 8-bit integers with one for each row.

`quant_method` bitsandbytes. The scales of 4-bit codes may be quantised again, with a mean that is added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from darwinlm.quantised.format import Format

STATE = ".weight.quant_state.bitsandbytes__"
ABSMAX, CODES = ".weight.absmax", ".weight.quant_map"
NESTED = {".weight.nested_absmax": "F32", ".weight.nested_quant_map": "F32"}
LARGEST = 127.0


def formats(_: Mapping[str, Any]) -> tuple[Format, ...]:
    """Formats of any quantization_config of bitsandbytes."""
    rows = Format(
        {".SCB": "F32", ".weight": "I8"}, _rows, lambda shapes, _: shapes[".weight"], {".weight_format": "U8"}
    )
    return rows, *(_codes(STATE + kind) for kind in ("nf4", "fp4"))


def _rows(parts: Mapping[str, Tensor]) -> Tensor:
    if parts[".SCB"].shape != parts[".weight"].shape[:1] or int(parts.get(".weight_format", torch.zeros(1))):
        raise ValueError("its scales don't belong to rows")
    return parts[".weight"].float().mul_(parts[".SCB"][:, None] / LARGEST)


def _codes(state: str) -> Format:
    needed = {state: "U8", ".weight": "U8 BF16 F16 F32", ABSMAX: "U8 F32", CODES: "F32"}
    return Format(needed, partial(_weight, state), lambda _, read: tuple(_record(read(state))["shape"]), NESTED)


def _record(state: Tensor) -> dict[str, Any]:
    """The record beside a weight, whose numbers are checked. Raises ValueError."""
    record = json.loads(bytes(state.tolist()))
    nested = "nested_blocksize" in record
    sizes = [*record["shape"], record["blocksize"], *([record["nested_blocksize"]] if nested else [])]
    if len(record["shape"]) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError("its record holds no sizes")
    if nested and not isinstance(record["nested_offset"], float | int):
        raise ValueError("its record holds no mean of the scales")
    return dict(record)


def _weight(state: str, parts: Mapping[str, Tensor]) -> Tensor:
    record, scales = _record(parts[state]), parts[ABSMAX]
    if "nested_blocksize" in record:
        scales = _looked_up(parts[".weight.nested_quant_map"], scales)
        scales = _by_run(scales, parts[".weight.nested_absmax"], record["nested_blocksize"]) + record["nested_offset"]
    octets = parts[".weight"].flatten().contiguous().view(torch.uint8)
    codes = torch.stack((octets >> 4, octets & 15), dim=1).flatten()
    rows, columns = record["shape"]
    values = _looked_up(parts[CODES], codes[: rows * columns])
    return _by_run(values, scales, record["blocksize"]).reshape(rows, columns)


def _looked_up(table: Tensor, codes: Tensor) -> Tensor:
    if codes.dtype != torch.uint8 or int(codes.max()) >= len(table):
        raise ValueError("its codes don't fit their table")
    return table.float()[codes.int()]


def _by_run(values: Tensor, scales: Tensor, length: int) -> Tensor:
    """Values times the scale of each run of a length."""
    if -(-len(values) // length) != len(scales):
        raise ValueError(f"{len(scales)} scales don't fit {len(values)} numbers in runs of {length}")
    return values * scales.float().repeat_interleave(length)[: len(values)]
