"""Tensors in the element types of GGUF files, as llama.cpp's own quantiser rounds them.

The quantiser takes files, so tensors of one type travel in a file of their own, in which nothing else is a model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darwinlm.engines.process import quantise_files

TYPES: dict[int, tuple[str, ...]] = {
    256: ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"),
    32: ("IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
}
"""Types to choose from, the smallest first, for rows whose columns are a multiple of this."""
FILE_TYPES = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}
"""The quantiser's names of whole files of a type, where they differ."""
PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Type in which tensors travel to the quantiser, by that of the checkpoint."""
RoundedBytes = dict[str, dict[str, np.ndarray[Any, Any]]]
"""Bytes of tensors, [..., r, c], by name and type."""
SIZES = ("context_length", "embedding_length", "block_count", "feed_forward_length", "head_count", "vocab_size")
"""Keys without which the quantiser refuses a file; it doesn't use them."""


def types_for(columns: int) -> tuple[str, ...]:
    """Element types of rows with so many columns, the smallest first; none if no type fits."""
    return next((types for multiple, types in TYPES.items() if columns % multiple == 0), ())


def all_types(columns: int) -> tuple[str, ...]:
    """Every element type that can hold rows with so many columns."""
    fitting = (types for multiple, types in TYPES.items() if columns % multiple == 0)
    return tuple(dict.fromkeys(kind for types in fitting for kind in types))


class Scratch:
    """A file of tensors on their way to the quantiser.

    `shapes` are those of the tensors by name, in the order in which they will be added.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
        import gguf

        self.path, self.names, self._gguf = path, list(shapes), gguf
        self._raw = gguf.GGMLQuantizationType[PLAIN.get(dtype, "F32")]
        self._writer: Any = gguf.GGUFWriter(path, "llama")
        for key in SIZES:
            getattr(self._writer, f"add_{key}")(1)
        self._writer.add_layer_norm_rms_eps(1e-5)
        for number, shape in enumerate(shapes.values()):
            stored = gguf.quant_shape_to_byte_shape(tuple(shape), self._raw)
            size = int(np.prod(stored))
            self._writer.add_tensor_info(f"t{number}.weight", stored, np.dtype(np.uint8), size, raw_dtype=self._raw)
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()

    def add(self, tensor: Tensor) -> None:
        """Add the next tensor."""
        stored = self._gguf.quants.quantize(tensor.float().contiguous().numpy(), self._raw)
        self._writer.write_tensor_data(stored.view(np.uint8))

    def close(self) -> None:
        """End the file."""
        self._writer.close()


def rounded(scratches: Sequence[tuple[Scratch, Sequence[str]]], threads: int) -> RoundedBytes:
    """Bytes of tensors, [..., r, c], by name and type; they are mapped from files beside the scratches.

    Each file is rounded to every one of its types.

    Raises:
        EngineError: The quantiser refuses the tensors.
        MissingExtraError: llama.cpp isn't installed.
    """
    from gguf import GGUFReader

    made = [
        (each, kind, each.path.with_name(f"{each.path.name}.{kind}")) for each, kinds in scratches for kind in kinds
    ]
    quantise_files([(each.path, path, FILE_TYPES.get(kind, kind)) for each, kind, path in made], threads, pure=True)
    found: RoundedBytes = {}
    for each, kind, path in made:
        data = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
        for number, name in enumerate(each.names):
            found.setdefault(name, {})[kind] = data[f"t{number}.weight"]
    return found


def roundings(
    tensors: Mapping[str, Tensor],
    folder: Path,
    kinds_of: Callable[[str, int], Sequence[str]] = lambda name, columns: types_for(columns),
    *,
    dtype: torch.dtype,
    threads: int,
) -> RoundedBytes:
    """`rounded` of tensors in memory; `kinds_of` gives types for a name and its columns. Raises as it does."""
    groups: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(tuple(kinds_of(name, tensor.shape[-1])), {})[name] = tensor
    scratches = []
    for number, (kinds, group) in enumerate((kinds, group) for kinds, group in groups.items() if kinds):
        scratch = Scratch(folder / f"{number}.gguf", {name: each.shape for name, each in group.items()}, dtype)
        for each in group.values():
            scratch.add(each)
        scratch.close()
        scratches.append((scratch, kinds))
    return rounded(scratches, threads) if scratches else {}


def dequantise(raw: np.ndarray[Any, Any], kind: str) -> Tensor:
    """The numbers that bytes of an element type stand for, float32."""
    import gguf

    return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))
