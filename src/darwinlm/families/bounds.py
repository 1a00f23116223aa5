"""Cheap checks of a model's description: absurd numbers, code from elsewhere, absent blocks, integer weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import shorten

LAYERS = re.compile(r"(layers?|block_count)$")
SIZES = re.compile(r"(_size|_dim|n_embd|d_model|heads?|_kv|experts?|(embedding|key|value|feed_forward)_length|_count)$")
"""Ends of names of numbers by which a configuration makes lists and buffers."""
POSITIVE = frozenset(
    {"num_hidden_layers", "block_count", "hidden_size", "intermediate_size", "embedding_length", "context_length"}
)
DTYPES = frozenset({"float32", "float16", "bfloat16", "float64", "auto"})
IMPLEMENTATIONS = frozenset({"eager", "sdpa", "grouped_mm", "batched_mm"})
"""What a configuration may choose for attention and experts; other words can name code on the hub that would run."""
WEIGHTS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Element types of weights, as safetensors name them, that can be read as numbers."""


def check_config(plain: Mapping[str, Any], path: Path | str) -> None:
    """Refuse a configuration, the contents of config.json or of a GGUF header without prefix, with unrealistic numbers.

    Raises CheckpointError, which names the path and the field.
    """
    for where, value in _leaves(plain):
        if "_implementation" in where and isinstance(value, str) and value not in IMPLEMENTATIONS:
            raise CheckpointError(
                f"{path}: {shorten(where)} is {shorten(value)}, which may be code from elsewhere: set it to sdpa, or "
                "remove the field"
            )
        most = 2048 if LAYERS.search(where) else 1 << 24 if SIZES.search(where) else 1 << 53
        least = 1 if where.rpartition(".")[2] in POSITIVE else -most
        if (isinstance(value, int) and not least <= value <= most) or value != value:  # noqa: PLR0124 - NaN
            raise CheckpointError(f"{path}: {shorten(where)} is {shorten(value)}, which no model has: fetch it again")
    dtype = plain.get("dtype", plain.get("torch_dtype"))
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise CheckpointError(
            f"{path}: dtype is {shorten(dtype)}, but weights must be float32, float16 or bfloat16: use the model as it "
            "was before it was quantised"
        )


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The plain values in a tree, each with the names that lead to it."""
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{where}.{name}" if where else str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(where, inner) for inner in value]
        else:
            yield where, value


def check_blocks(stated: int, names: Iterable[str], layers: str, path: Path | str, *, absent: int = 0) -> None:
    """Refuse a number of blocks in the configuration that doesn't match the names of the stored tensors.

    `layers` is the prefix of the blocks, of which some may be `absent`. Raises CheckpointError if there are fewer or
    more blocks, or some are missing.
    """
    pattern = re.compile(rf"{re.escape(layers)}\.(\d{{1,9}})\.")
    blocks = {int(match[1]) for name in names if (match := pattern.match(name))}
    if stated > len(blocks) + absent or (blocks and max(blocks) >= stated):
        have = f"{len(blocks)} blocks" + (f", the last being number {max(blocks)}" if blocks else "")
        raise CheckpointError(f"{path} states {stated} blocks, but the files hold {have}: fetch the model again")


def check_types(types: Mapping[str, str], where: Path | str) -> None:
    """Refuse weights that aren't floating-point numbers, by their types as safetensors name them.

    Raises CheckpointError, which names the first tensor of another type.
    """
    for name, kind in types.items():
        if kind not in WEIGHTS:
            raise CheckpointError(
                f"{where}: the tensor {shorten(name)} holds {kind} numbers, and nothing that turns them into floats: "
                "fetch the model again, or use the one that it was made from"
            )
