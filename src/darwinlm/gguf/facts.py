"""What a GGUF file holds, from its header."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path

from darwinlm.gguf.header import GgufHeader, read_header


@dataclass(frozen=True)
class FileFacts:
    """A file's contents.

    Attributes:
        weights: Number of weights.
        types: Number of tensors by element type.
        context: Longest text in tokens; None if the file doesn't say.
        tokenizer: Its model and, if stated, its way to split text.
        heads, groups, widths: Query heads, KV heads and MLP channels of each block.
    """

    name: str
    architecture: str
    bytes: int
    weights: int
    types: dict[str, int]
    context: int | None
    tokens: int
    tokenizer: str
    chat_template: bool
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    widths: tuple[int, ...]


def read_facts(path: Path) -> FileFacts:
    """Read the header of a file. Raises CheckpointError, MissingExtraError."""
    header = read_header(path)
    keys, sizes = header.keys, header.sizes()
    named = (keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre"))
    return FileFacts(
        name=str(keys.get("general.name", path.stem)),
        architecture=header.architecture,
        bytes=path.stat().st_size,
        weights=sum(prod(shape) for shape in header.weights().values()),
        types=dict(Counter(header.types.values()).most_common()),
        context=sizes.get("context_length"),
        tokens=header.tensors["token_embd.weight"][0],
        tokenizer=" ".join(str(part) for part in named if part) or "none",
        chat_template="tokenizer.chat_template" in keys,
        heads=_by_block(header, "attention.head_count"),
        groups=_by_block(header, "attention.head_count_kv"),
        widths=_by_block(header, "feed_forward_length"),
    )


def _by_block(header: GgufHeader, key: str) -> tuple[int, ...]:
    sizes = header.sizes()
    value, blocks = sizes.get(key, 0), int(sizes.get("block_count", 0))
    return tuple(value) if isinstance(value, list) else (value,) * blocks
