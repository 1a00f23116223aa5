"""Unpacked size of the messages of an Arrow stream, read from their metadata before the library unpacks them.

Formats: https://github.com/apache/arrow/blob/main/format/Message.fbs, https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from typing import Any

HEADER, DATA, BUFFERS, COMPRESSION = 2, 1, 2, 3
"""Fields of a message, of a dictionary, and of a batch."""


def unpacked_bytes(message: Any) -> int:
    """Size of a message's buffers in bytes after decompression, as they state it.

    The message is a `pyarrow.ipc.Message`. Raises struct.error if the metadata is damaged.
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    data, body = memoryview(message.metadata), memoryview(message.body)
    batch = _table(data, _fields(data, _table(data, 0))[HEADER])
    if message.type == "dictionary":
        batch = _table(data, _fields(data, batch)[DATA])
    fields = _fields(data, batch)
    if len(fields) <= COMPRESSION or not fields[COMPRESSION]:
        return len(body)
    vector = _table(data, fields[BUFFERS])
    count = struct.unpack_from("<I", data, vector)[0]
    total = 0
    for number in range(count):
        place, size = struct.unpack_from("<qq", data, vector + 4 + 16 * number)
        if size:
            stated = struct.unpack_from("<q", body, place)[0]
            total += size if stated == -1 else abs(stated)  # -1: this buffer isn't compressed
    return total


def _table(data: memoryview, place: int) -> int:
    """Place of the table or vector that a reference points to."""
    return int(place + struct.unpack_from("<I", data, place)[0])


def _fields(data: memoryview, table: int) -> list[int]:
    """Place of each field of a table; 0 for an absent one."""
    places = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, places)[0]
    offsets = struct.unpack_from(f"<{max(size - 4, 0) // 2}H", data, places + 4)
    return [table + offset if offset else 0 for offset in offsets]
