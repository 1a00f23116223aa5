"""The header of a GGUF file; every count and length is checked against the file before use.

Libraries trust these numbers: a count of 2^40 keeps them busy for days, an offset of 2^64 - 32 wraps around. Files that
pass this check are safe for them.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from darwinlm.families.bounds import LIMITS, check_config
from darwinlm.runtime.errors import CheckpointError, import_extra
from darwinlm.runtime.limits import shorten

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
KEPT = 4096
"""Maximum length of a stored array of numbers; the lists of a tokenizer are only counted."""
TOKEN_LISTS = ("tokens", "scores", "token_type")


@dataclass(frozen=True)
class GgufHeader:
    """Contents of the header.

    Attributes:
        keys: Numbers, strings and short arrays of either by name.
        counts: Length of every array by name.
        tensors: Shape of every tensor, rows first, by name.
        types: Element type of every tensor by name.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """Name of the architecture; empty if there is none."""
        return str(self.keys.get("general.architecture", ""))

    def sizes(self) -> dict[str, Any]:
        """The architecture's keys without their prefix."""
        prefix = f"{self.architecture}."
        return {name.removeprefix(prefix): value for name, value in self.keys.items() if name.startswith(prefix)}

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors without those that only scale the rotary embedding."""
        return {name: shape for name, shape in self.tensors.items() if not name.startswith("rope_")}


def read_header(path: Path, *, weights: bool = True) -> GgufHeader:
    """Read and check the header of a file, which without `weights` may hold a tokenizer alone.

    Raises:
        CheckpointError: The file isn't GGUF, is damaged, or contradicts its header.
        MissingExtraError: Without the extra `gguf`.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(path, data)
            header, start = reader.read()
            _check_places(path, header, reader.places, start, len(data))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read the GGUF file {path}: {shorten(error)}") from error
    if weights:
        _check_model(path, header)
    return header


def _bad(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"can't read the GGUF file {path}: {reason}. Fetch it again")


class _Reader:
    """Sequential reader that never reads beyond the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.place, self.order = path, data, 0, "<"
        self.places: dict[str, tuple[int, int]] = {}
        """Element type and offset of every tensor."""

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise _bad(self.path, f"it ends at byte {len(self.data):,}, in the middle of its header")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack(self.order + code, self.take(struct.calcsize(f"={code}")))[0]

    def text(self, *, keep: bool = True) -> str:
        size = self.number("Q")
        if not keep:
            if size > len(self.data) - self.place:
                raise _bad(self.path, f"a string of {size:,} bytes is longer than the file")
            self.place += size
            return ""
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise _bad(self.path, "a name in it isn't UTF-8") from None

    def read(self) -> tuple[GgufHeader, int]:
        if self.take(4) != MAGIC:
            raise _bad(self.path, "its first bytes aren't those of GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            raise CheckpointError(f"{self.path} is GGUF version {version}, but 2 and 3 are known: convert it again")
        tensors, keys = self.number("Q"), self.number("Q")
        left = len(self.data) - self.place
        for count, least, what in ((keys, 13, "keys"), (tensors, 32, "tensors")):
            if count * least > left:
                raise _bad(self.path, f"it states {count:,} {what}, more than its {len(self.data):,} bytes can hold")
        header = GgufHeader()
        for _ in range(keys):
            name = self.text()
            if name in header.keys or name in header.counts:
                raise _bad(self.path, f"the key {shorten(name)} is duplicated")
            self._value(header, name)
        for _ in range(tensors):
            self._tensor(header)
        alignment = header.keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _bad(self.path, f"its alignment is {shorten(alignment)}")
        return header, -(-self.place // alignment) * alignment

    def _tensor(self, header: GgufHeader) -> None:
        name, tensors = self.text(), header.tensors
        dimensions = self.number("I")
        if not 1 <= dimensions <= 4:
            raise _bad(self.path, f"the tensor {shorten(name)} has {dimensions} dimensions")
        if name in tensors:
            raise _bad(self.path, f"the tensor {shorten(name)} is duplicated")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        self.places[name] = self.number("I"), self.number("Q")
        tensors[name] = shape[::-1]

    def _value(self, header: GgufHeader, name: str) -> None:
        kind = self.number("I")
        if kind in NUMBERS:
            header.keys[name] = self.number(NUMBERS[kind])
        elif kind == STRING:
            header.keys[name] = self.text()
        elif kind == ARRAY:
            self._array(header, name)
        else:
            raise _bad(self.path, f"the key {shorten(name)} has the type {kind}")

    def _array(self, header: GgufHeader, name: str) -> None:
        kind, count = self.number("I"), self.number("Q")
        least = 8 if kind == STRING else struct.calcsize(f"={NUMBERS[kind]}") if kind in NUMBERS else 0
        if not least:
            raise _bad(self.path, f"the key {shorten(name)} is an array of the type {kind}")
        if count * least > len(self.data) - self.place:
            raise _bad(self.path, f"the array {shorten(name)} has {count:,} entries, more than the file can hold")
        header.counts[name] = count
        if kind == STRING:
            short = count <= KEPT
            texts = [self.text(keep=short) for _ in range(count)]
            if short:
                header.keys[name] = texts
        else:
            raw = self.take(count * least)
            if count <= KEPT:
                header.keys[name] = list(struct.unpack(f"{self.order}{count}{NUMBERS[kind]}", raw))


def _check_places(path: Path, header: GgufHeader, kinds: Mapping[str, tuple[int, int]], start: int, size: int) -> None:
    """Check that each tensor lies inside the file, and that none overlap."""
    if not header.tensors:
        return
    constants = import_extra("gguf", "gguf", f"reading {path.name}").constants
    sizes = {int(kind): sizes for kind, sizes in constants.GGML_QUANT_SIZES.items()}
    names = {int(kind): kind.name for kind in constants.GGMLQuantizationType}
    places = []
    for name, shape in header.tensors.items():
        kind, offset = kinds[name]
        if kind not in sizes:
            raise _bad(path, f"the tensor {shorten(name)} has the type {kind}, which isn't known")
        if names[kind].startswith("I") and names[kind][1:].isdigit():
            raise CheckpointError(
                f"{path}: the tensor {shorten(name)} holds {names[kind]} numbers, not weights: use another file"
            )
        header.types[name] = names[kind]
        block, each = sizes[kind]
        count = prod(shape)
        if not count or shape[-1] % block:
            raise _bad(path, f"the tensor {shorten(name)} has the shape {' x '.join(map(str, shape))}")
        places.append((offset, offset + count // block * each, name))
    places.sort()
    end = 0
    for begin, after, name in places:
        if begin < end:
            raise _bad(path, f"the tensor {shorten(name)} shares bytes with another one")
        if start + after > size:
            raise _bad(path, f"the tensor {shorten(name)} ends at byte {start + after:,} of {size:,}")
        end = after


def _check_model(path: Path, header: GgufHeader) -> None:
    """Check that the file holds a whole language model with the stated number of blocks."""
    if not header.architecture:
        raise CheckpointError(f"{path} names no architecture: it isn't a language model. Give another file")
    parts = header.keys.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(f"{path} is one of {parts} parts: join them with llama-gguf-split --merge first")
    if not header.tensors:
        raise CheckpointError(f"{path} holds no tensors, only a tokenizer: give the file of the whole model")
    sizes = header.sizes()
    check_config(sizes, path)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or "output_norm.weight" not in header.tensors:
        missing = "token_embd.weight" if embedding is None else "output_norm.weight"
        raise CheckpointError(f"{path} lacks the tensor {missing}: fetch it again")
    if embedding[0] > LIMITS["vocab_size"]:
        raise CheckpointError(f"{path}: the embedding has {embedding[0]:,} rows: fetch it again")
    for key in TOKEN_LISTS:
        count = header.counts.get(f"tokenizer.ggml.{key}", 0)
        if count > embedding[0]:
            raise CheckpointError(
                f"{path}: its tokenizer has {count:,} {key}, but the embedding {embedding[0]:,} rows: fetch it again"
            )
    _check_block_numbers(path, sizes, header.tensors)


def _check_block_numbers(path: Path, sizes: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blk\.(\d{1,9})\.", name))}
    stated = sizes.get("block_count")
    if not isinstance(stated, int) or blocks != set(range(stated)):
        last = f", the last being number {max(blocks)}" if blocks else ""
        raise CheckpointError(
            f"{path} states {shorten(stated)} blocks (block_count), but holds {len(blocks)}{last}: fetch it again"
        )
