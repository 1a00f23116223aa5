"""A GGUF file: keys, shapes and types of its tensors, and their numbers; checked before use."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from darwinlm.model.families.config import check_config
from darwinlm.runtime.errors import CheckpointError, first_line, import_extra
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import shorten

if TYPE_CHECKING:
    from gguf import ReaderTensor

UNREADABLE = (OSError, ValueError, LookupError, TypeError, OverflowError, struct.error)
"""Errors of the reader at damaged files."""
LAST_NORMS = ("output_norm.weight", "token_embd_norm.weight")
"""Names of the last norm, which depend on the architecture."""
ROWS = 1 << 24
"""Most rows of an embedding."""
WHOLE = ("_token_id", ".context_length")
"""Ends of names of keys that are whole numbers."""
TOKEN_LISTS = ("tokens", "scores", "token_type")


@dataclass(frozen=True)
class Element:
    """An element type: `weights` of a block take `bytes`.

    Attributes:
        error: Largest relative rounding error of a tensor.
        narrow: Type that llama.cpp takes instead for rows that aren't whole blocks.
    """

    weights: int
    bytes: int
    error: float = 0.5
    narrow: str = ""


ELEMENTS = {
    "F32": Element(1, 4, 1e-7),
    "F16": Element(1, 2, 2e-3),
    "BF16": Element(1, 2, 6e-3),
    "Q8_0": Element(32, 34, 0.02),
    "Q6_K": Element(256, 210, 0.06, "Q8_0"),
    "Q5_K": Element(256, 176, 0.1, "Q5_1"),
    "Q5_1": Element(32, 24, 0.1),
    "Q5_0": Element(32, 22, 0.1),
    "Q4_K": Element(256, 144, 0.2, "Q5_0"),
    "Q4_1": Element(32, 20, 0.2),
    "Q4_0": Element(32, 18, 0.2),
    "IQ4_NL": Element(32, 18, 0.2),
    "Q3_K": Element(256, 110, 0.35, "IQ4_NL"),
    "Q2_K": Element(256, 84, 0.5, "IQ4_NL"),
}


def rounding_error(kind: str) -> float:
    """Largest relative rounding error of a tensor; that of the coarsest type if it isn't known."""
    return ELEMENTS[kind].error if kind in ELEMENTS else 0.5


@dataclass(frozen=True)
class GgufHeader:
    """Contents of the header.

    Attributes:
        keys: Numbers, strings and short arrays of either by name.
        counts: Length of every array by name.
        tensors: Shape of every tensor, rows first, by name.
        types: Element type of every tensor by name.
        stored: Its tensors, as `gguf.GGUFReader` gives them.
        path: The file.
    """

    keys: JsonObject = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    stored: dict[str, ReaderTensor] = field(default_factory=dict, repr=False)
    path: Path = Path()

    def numbers(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some of its rows, in float32.

        Raises CheckpointError if the file has gone, or has a type whose numbers the package `gguf` can't compute.
        """
        from darwinlm.formats.gguf.numbers import read_numbers

        try:
            return read_numbers(self.path, self.stored[name], self.tensors[name], rows)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} can't be read any more ({shorten(first_line(error))}): bring back its disk or folder, "
                "then rerun the same command"
            ) from error
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: the tensor {shorten(name)} is of the type {self.types[name]}, which can't be read: use "
                "a file of another type"
            ) from error

    @property
    def architecture(self) -> str:
        """Name of the architecture; empty if there is none."""
        return str(self.keys.get("general.architecture", ""))

    def sizes(self) -> JsonObject:
        """The architecture's keys without their prefix."""
        prefix = f"{self.architecture}."
        return {name.removeprefix(prefix): value for name, value in self.keys.items() if name.startswith(prefix)}

    @property
    def pooling(self) -> str:
        """Name of the pooling of a model that reads, as in `gguf.PoolingType`; empty for a model that writes."""
        from gguf import PoolingType

        number = self.sizes().get("pooling_type", 0)
        if not number:
            return ""
        return PoolingType(number).name if number in iter(PoolingType) else str(number)

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors without those that only scale the rotary embedding."""
        return {name: shape for name, shape in self.tensors.items() if not name.startswith("rope_")}


def file_type(header: GgufHeader) -> str:
    """The quantisation that a file states for most of its tensors, as in `QUANTISATIONS`; empty if it states none."""
    from gguf import LlamaFileType

    try:
        name = LlamaFileType(header.keys.get("general.file_type", -1)).name
    except ValueError:
        return ""
    return str(name).removeprefix("ALL_").removeprefix("MOSTLY_").lower()


def read_header(path: Path, *, weights: bool = True) -> GgufHeader:
    """Read and check the header of a file, which without `weights` may hold a tokenizer alone.

    Raises:
        CheckpointError: The file isn't GGUF, is damaged, or contradicts its header.
        MissingExtraError: Without the extra `gguf`.
    """
    import_extra("gguf", "gguf", f"reading {path.name}")
    from darwinlm.formats.gguf.reader import CheckedReader

    header = GgufHeader(path=path)
    try:
        reader = CheckedReader(path)
        for name, entry in reader.fields.items():
            is_array = str(entry.types[0].name) == "ARRAY"
            if is_array:
                header.counts[name] = int(entry.parts[4][0])
            if not name.startswith("GGUF.") and not (is_array and not entry.data):
                header.keys[name] = entry.contents()
    except UNREADABLE as error:
        raise _bad(path, shorten(first_line(error))) from error
    for tensor in reader.tensors:
        header.tensors[tensor.name] = tuple(int(size) for size in reversed(tensor.shape))
        header.types[tensor.name] = tensor.tensor_type.name
        header.stored[tensor.name] = tensor
    _check_keys(path, header)
    _check_tensors(path, header)
    if weights:
        _check_model(path, header)
    return header


def refuse_reader(header: GgufHeader) -> None:
    """Refuse a file of a model that reads where one that writes is wanted. Raises CheckpointError."""
    if header.pooling:
        raise CheckpointError(
            f"{header.path} holds a model that gives scores or embeddings (pooling_type is {header.pooling}), which "
            "llama.cpp's servers run and nothing reads back: give the folder that it was written from"
        )


def _bad(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"can't read the GGUF file {path}: {reason}. Fetch it again")


def _check_keys(path: Path, header: GgufHeader) -> None:
    """Check the types of keys that are used as they are."""
    for name, value in header.keys.items():
        kind: type = object
        if name == "tokenizer.chat_template":
            kind = str
        elif name.endswith(WHOLE):
            kind = int
        if not isinstance(value, kind):
            raise _bad(path, f"{shorten(name)} is {shorten(value)}")


def _check_tensors(path: Path, header: GgufHeader) -> None:
    """Check that tensors hold weights, and that none overlap."""
    end = 0
    for name, stored in sorted(header.stored.items(), key=lambda tensor: int(tensor[1].data_offset)):
        kind = header.types[name]
        if kind.startswith("I") and kind[1:].isdigit():
            raise CheckpointError(
                f"{path}: the tensor {shorten(name)} holds {kind} numbers, not weights: use another file"
            )
        if not prod(header.tensors[name]):
            raise _bad(path, f"the tensor {shorten(name)} has the shape {' x '.join(map(str, header.tensors[name]))}")
        if stored.data_offset < end:
            raise _bad(path, f"the tensor {shorten(name)} shares bytes with another one")
        end = int(stored.data_offset) + stored.n_bytes


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
    if embedding is None or not any(name in header.tensors for name in LAST_NORMS):
        missing = "token_embd.weight" if embedding is None else LAST_NORMS[0]
        raise CheckpointError(f"{path} lacks the tensor {missing}: fetch it again")
    if len(embedding) != 2 or embedding[0] > ROWS:
        raise CheckpointError(f"{path}: the embedding is {' x '.join(map(str, embedding))}: fetch it again")
    for key in TOKEN_LISTS:
        count = header.counts.get(f"tokenizer.ggml.{key}", 0)
        if count > embedding[0]:
            raise CheckpointError(
                f"{path}: its tokenizer has {count:,} {key}, but the embedding {embedding[0]:,} rows: fetch it again"
            )
    _check_block_numbers(path, sizes, header.tensors)


def _check_block_numbers(path: Path, sizes: Mapping[str, object], tensors: Iterable[str]) -> None:
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blk\.(\d{1,9})\.", name))}
    block_count = sizes.get("block_count")
    if not isinstance(block_count, int) or blocks != set(range(block_count)):
        last = f", the last being number {max(blocks)}" if blocks else ""
        raise CheckpointError(
            f"{path} states {shorten(block_count)} blocks (block_count), but holds {len(blocks)}{last}: fetch it again"
        )
