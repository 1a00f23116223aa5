"""GGUFReader of the package `gguf`, which trusts a file's counts and lengths, with bounds on them.

Import it where the extra `gguf` is known to be there.
"""

from __future__ import annotations

import struct
from typing import Any

from gguf import GGUFReader, GGUFValueType

KEPT = 4096
"""Maximum length of an array that is read. The lists of a tokenizer are only counted, which is fifty times as fast."""
LONGEST = 1 << 23
"""Maximum length of any array."""
AXES = 4


class CheckedReader(GGUFReader):  # type: ignore[misc]
    """The header of a file, and views of its tensors. Raises ValueError and others if the file is damaged."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if int(count) > len(self.data) or int(offset) > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data):,}, before something that its header names")
        values = super()._get(int(offset), dtype, count, override_order)
        if len(values) < int(count):
            raise ValueError(f"it ends at byte {len(self.data):,}, in the middle of something that its header names")
        return values

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, "uint32"), self._get(orig_offs + 4, "uint64")
        length, start = int(count[0]), orig_offs + 12
        if length > LONGEST or kind[0] == GGUFValueType.ARRAY:
            raise ValueError(f"an array in it has {length:,} entries, or arrays as entries")
        if length <= KEPT:
            return super()._get_field_parts(orig_offs, raw_type)
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

    def _get_tensor_info_field(self, orig_offs: int) -> Any:
        field = super()._get_tensor_info_field(orig_offs)
        if not 1 <= field.parts[2][0] <= AXES:
            raise ValueError(f"a tensor in it has {field.parts[2][0]} dimensions")
        if field.parts[5][0] > len(self.data):
            raise ValueError(f"a tensor in it begins at byte {field.parts[5][0]:,} of {len(self.data):,}")
        return field
