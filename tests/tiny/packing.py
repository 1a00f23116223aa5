"""Quantised checkpoints, written bit by bit: integers at their places in words, with scales and zeros beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny.damage import edit_config

GROUP = 16
Tensors = dict[str, Tensor]
Packed = tuple[Tensors, Tensor]
"""Stored tensors by ending, and the weight that they stand for."""


def words(numbers: Tensor, bits: int, places: tuple[int, ...] | None = None) -> Tensor:
    """Numbers [r, n] in 32-bit words [r, n bits / 32]; the i-th of a word is at the i-th of the `places`."""
    per = 32 // bits
    rows = []
    numbers = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % per))
    for row in numbers.tolist():
        made = []
        for begin in range(0, len(row), per):
            word = sum(row[begin + i] << bits * (places[i] if places else i) for i in range(per))
            made.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(made)
    return torch.tensor(rows, dtype=torch.int32)


def _grouped(shape: torch.Size, bits: int, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integers, zeros, scales, and `(integers - zeros) scales`."""
    rows, columns = shape
    numbers, zeros = (torch.randint(2**bits, (rows, n)) for n in (columns, columns // group))
    scales = (0.01 * torch.rand(zeros.shape) + 0.001).half()
    wide = [each.repeat_interleave(group, 1).float() for each in (zeros, scales)]
    return numbers, zeros, scales, (numbers.float() - wide[0]) * wide[1]


def gptq(weight: Tensor, *, bits: int = 4, first: bool = True, mixed: bool = False) -> Packed:
    numbers, zeros, scales, expected = _grouped(weight.shape, bits)
    stored = (zeros - 1) % 2**bits if first else zeros
    made = {".qzeros": words(stored.T, bits), ".scales": scales.T}
    groups = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
    order = torch.randperm(weight.shape[1]) if mixed else torch.arange(weight.shape[1])
    made |= {".qweight": words(numbers[:, order], bits).T, ".g_idx": groups[order]}
    return made, expected[:, order]


def awq(weight: Tensor) -> Packed:
    numbers, zeros, scales, expected = _grouped(weight.shape, 4)
    places = (0, 4, 1, 5, 2, 6, 3, 7)
    return {
        ".qweight": words(numbers.T, 4, places),
        ".qzeros": words(zeros.T, 4, places),
        ".scales": scales.T,
    }, expected


def pack_quantized(weight: Tensor, *, bits: int = 4, symmetric: bool = False) -> Packed:
    numbers, zeros, scales, expected = _grouped(weight.shape, bits)
    made = {".weight_packed": words(numbers, bits), ".weight_scale": scales}
    made[".weight_shape"] = torch.tensor(weight.shape)
    if symmetric:
        return made, (numbers - 2 ** (bits - 1)) * scales.float().repeat_interleave(GROUP, 1)
    return made | {".weight_zero_point": words(zeros.T, bits).T}, expected


def with_scale(weight: Tensor, kind: torch.dtype, block: tuple[int, int] | None, ending: str) -> Packed:
    """Numbers with a scale for each block, or one for all."""
    values = torch.randint(-100, 100, weight.shape).float().to(kind)
    if block is None:
        scale = torch.tensor(0.01)
        return {".weight": values, ending: scale}, values.float() * scale
    shape = [-(-size // part) for size, part in zip(weight.shape, block, strict=True)]
    scale = 0.01 * torch.rand(shape) + 0.001
    wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return {".weight": values, ending: scale}, values.float() * wide[: weight.shape[0], : weight.shape[1]]


def four_bits(weight: Tensor, *, nested: bool, run: int = 32) -> Packed:
    codes = torch.randint(16, (weight.numel(),))
    table, count = torch.linspace(-1, 1, 16), weight.numel() // run
    record: dict[str, Any] = {"blocksize": run, "dtype": "float16", "quant_type": "nf4", "shape": list(weight.shape)}
    made = {".weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None], ".weight.quant_map": table}
    scales = torch.rand(count) + 0.1
    if nested:
        inner = torch.linspace(-1, 1, 256)
        octets, outer = torch.randint(256, (count,)), torch.rand(-(-count // 8))
        record |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 1.5}
        scales = inner[octets] * outer.repeat_interleave(8)[:count] + 1.5
        made |= {".weight.nested_absmax": outer, ".weight.nested_quant_map": inner}
    made[".weight.absmax"] = octets.to(torch.uint8) if nested else scales
    made[".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)
    return made, (table[codes].view(-1, run) * scales[:, None]).view(weight.shape)


def eight_bits(weight: Tensor) -> Packed:
    numbers, scales = torch.randint(-127, 128, weight.shape, dtype=torch.int8), torch.rand(len(weight))
    stored = {".weight": numbers, ".SCB": scales, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, numbers.float() * scales[:, None] / 127


def quantise(folder: Path, how: Callable[[Tensor], Packed], config: dict[str, Any]) -> Tensors:
    """Replace the projections of a plain checkpoint; returns the weights that they stand for now."""
    path = folder / "model.safetensors"
    tensors, expected = load_file(path), {}
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        stored, expected[name] = how(tensors.pop(name))
        tensors |= {name.removesuffix(".weight") + ending: each.contiguous() for ending, each in stored.items()}
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    edit_config(folder, quantization_config=config)
    return expected
