"""What an operation would ask of a GPU: operations by element type, bytes of its memory, bytes to and from the host."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from tests.gpu.rules import MULTIPLIED, Call

ROWS_READ = frozenset({"aten::index", "aten::index_select", "aten::gather", "aten::embedding", "aten::_unsafe_index"})
"""Read only what they return."""
ROWS_WRITTEN = frozenset({"aten::index_copy_", "aten::index_fill_", "aten::index_put_", "aten::_index_put_impl_"})
"""Write only what they are given."""


def amounts_of(call: Call, result: Any) -> Counter[str]:
    """Operations (`products` in 16 bits, `float32`, `float64`), and bytes `moved` there, and `copied` to or from it."""
    outputs = [one for one in tree_flatten(result)[0] if isinstance(one, Tensor)]
    if call.goes_up or call.goes_down:
        return Counter(copied=sum(map(_bytes, outputs[:1])))
    found: Counter[str] = Counter()
    operations = _operations(call, outputs)
    if operations:
        kind = next(one.dtype for one in call.tensors if one.ndim > 1)
        found["products" if kind.itemsize == 2 else str(kind).removeprefix("torch.")] += operations
    if call.is_kernel:
        found["moved"] += _moved(call, outputs)
    return found


def _operations(call: Call, outputs: list[Tensor]) -> int:
    name, given = call.name.removesuffix("_"), call.tensors
    if call.name in MULTIPLIED or name in MULTIPLIED:
        left = given[0] if name in ("aten::mm", "aten::bmm", "aten::mv") else given[1]
        return 2 * outputs[0].numel() * left.shape[-1]
    if name == "aten::linalg_cholesky_ex":
        return prod(given[0].shape[:-2]) * given[0].shape[-1] ** 3 // 3
    if name == "aten::linalg_solve_triangular":
        return int(given[0].shape[-1] * given[1].numel())
    if name == "aten::cholesky_solve":
        return int(2 * given[1].shape[-1] * given[0].numel())
    return 0


def _moved(call: Call, outputs: list[Tensor]) -> int:
    if call.name in ROWS_READ:
        return 2 * sum(map(_bytes, outputs))
    if call.name in ROWS_WRITTEN:
        return 2 * sum(map(_bytes, call.tensors[1:]))
    return sum(map(_bytes, [*call.tensors, *outputs]))


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, without those that a broadcast repeats."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return prod(sizes) * tensor.dtype.itemsize if tensor.layout == torch.strided else tensor.nbytes
