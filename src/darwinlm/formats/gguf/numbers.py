"""The numbers of a tensor of a GGUF file, read from the file and dequantised in parts by all threads.

Import it only where the extra `gguf` is known to be installed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from gguf import ReaderTensor

AT_ONCE = 1 << 19
"""Weights of a part: two megabytes in float32, which a core's cache holds."""


def read_numbers(path: Path, stored: ReaderTensor, shape: tuple[int, ...], rows: slice) -> Tensor:
    """Rows of a tensor in float32.

    The file's pages are read into memory of their own rather than mapped, so that they don't count as used afterwards.

    Args:
        path: The file.
        stored: The tensor, as `gguf.GGUFReader` gives it.
        shape: Its shape.
        rows: Consecutive rows.

    Raises:
        OSError: The file can't be read.
        NotImplementedError: The package `gguf` can't dequantise its type.
    """
    if len(shape) == 1:  # its bytes are one row
        whole: NDArray[np.generic] = np.fromfile(path, stored.data.dtype, stored.data.size, offset=stored.data_offset)
        return torch.from_numpy(np.array(dequantize(whole, stored.tensor_type)[rows], dtype=np.float32))
    start, stop, _ = rows.indices(shape[0])
    weights, elements = prod(shape[1:]), prod(stored.data.shape[1:])
    row_bytes = elements * stored.data.dtype.itemsize
    result = np.empty((stop - start, *shape[1:]), dtype=np.float32)

    def fill(first: int) -> None:
        count = min(step, stop - first)
        offset = int(stored.data_offset) + first * row_bytes
        raw: NDArray[np.generic] = np.fromfile(path, stored.data.dtype, count * elements, offset=offset)
        part = dequantize(raw.reshape(count, *stored.data.shape[1:]), stored.tensor_type)
        result[first - start : first - start + count] = part.reshape(count, *shape[1:])

    step = max(1, AT_ONCE // weights)
    firsts = range(start, stop, step)
    if len(firsts) == 1:
        fill(start)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(fill, firsts))
    return torch.from_numpy(result)
