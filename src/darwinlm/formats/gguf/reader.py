"""GGUFReader of the package `gguf`, which trusts a file's counts and lengths, with bounds on them.

Import it only where the extra `gguf` is known to be installed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from gguf import GGUFReader, GGUFValueType
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from gguf import ReaderField

KEPT = 4096
"""Maximum length of an array that is read. The lists of a tokenizer are only counted, which is fifty times as fast."""
LONGEST = 1 << 23
"""Maximum length of any array."""
AXES = 4

Numbers: TypeAlias = NDArray[np.number]
FieldParts: TypeAlias = tuple[int, list[Numbers], list[int], list[GGUFValueType]]
"""Length of a field in bytes, its parts, the numbers of those that are its data, and its types."""


class CheckedReader(GGUFReader):  # type: ignore[misc]
    """The header of a file, and views of its tensors. Raises ValueError and others if the file is damaged."""

    def _get(
        self, offset: int, dtype: DTypeLike, count: int = 1, override_order: Literal["I", "S", "<"] | None = None
    ) -> Numbers:
        if int(count) > len(self.data) or int(offset) > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data):,}, before something that its header names")
        values: Numbers = super()._get(int(offset), dtype, count, override_order)
        if len(values) < int(count):
            raise ValueError(f"it ends at byte {len(self.data):,}, in the middle of something that its header names")
        return values

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> FieldParts:
        stock: FieldParts
        if raw_type != GGUFValueType.ARRAY:
            stock = super()._get_field_parts(orig_offs, raw_type)
            return stock
        kind, count = self._get(orig_offs, "uint32"), self._get(orig_offs + 4, "uint64")
        length, start = int(count[0]), orig_offs + 12
        if length > LONGEST or kind[0] == GGUFValueType.ARRAY:
            raise ValueError(f"an array in it has {length:,} entries, or arrays as entries")
        if length <= KEPT:
            stock = super()._get_field_parts(orig_offs, raw_type)
            return stock
        if kind[0] == GGUFValueType.STRING:
            end = self._end_of_strings(start, length)
        else:
            end = start + self._get(start, self.gguf_scalar_to_np[GGUFValueType(kind[0])], length).nbytes
        return end - orig_offs, [kind, count], [], [GGUFValueType.ARRAY, GGUFValueType(kind[0])]

    def _end_of_strings(self, place: int, count: int) -> int:
        order = ">Q" if self.byte_order == "S" else "<Q"
        for _ in range(count):
            place += 8 + struct.unpack_from(order, self.data, place)[0]
        return place

    def _get_tensor_info_field(self, orig_offs: int) -> ReaderField:
        field = super()._get_tensor_info_field(orig_offs)
        if not 1 <= field.parts[2][0] <= AXES:
            raise ValueError(f"a tensor in it has {field.parts[2][0]} dimensions")
        if field.parts[5][0] > len(self.data):
            raise ValueError(f"a tensor in it begins at byte {field.parts[5][0]:,} of {len(self.data):,}")
        return field
