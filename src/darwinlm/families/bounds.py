"""Cheap checks of a model's description: absurd numbers, code from elsewhere, absent blocks, integer weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import shorten

LAYERS = re.compile(r"(layers?|block_count)$"), 2048
SIZES = (
    re.compile(r"(_size|_dim|n_embd|d_model|heads?|_kv|experts?|(embedding|key|value|feed_forward)_length|_count)$"),
    1 << 24,
)
"""Ends of names of numbers by which a configuration makes lists and buffers, and the largest value of these numbers."""
POSITIVE = frozenset(
    {"num_hidden_layers", "block_count", "hidden_size", "intermediate_size", "embedding_length", "context_length"}
)
LARGEST_INTEGER = 1 << 53
"""Largest allowed integer of a configuration, for any name."""
DTYPES = frozenset({"float32", "float16", "bfloat16", "float64", "auto"})
IMPLEMENTATIONS = frozenset({"eager", "sdpa", "grouped_mm", "batched_mm"})
"""What a configuration may choose for attention and experts; other words can name code on the hub that would run."""
WEIGHTS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Element types of weights, as safetensors name them, that can be read as numbers."""


def check_config(plain: Mapping[str, Any], path: Path | str) -> None:
    """Refuse a configuration, the contents of config.json or of a GGUF header without prefix, with unrealistic numbers.

    Raises CheckpointError, which names the path and the field.
    """
    waiting: list[tuple[str, Any]] = [("", plain)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            for name, inner in value.items():
                _check_field(str(name), inner, f"{where}.{name}" if where else str(name), path)
                waiting.append((f"{where}.{name}" if where else str(name), inner))
        elif isinstance(value, list):
            waiting += [(where, inner) for inner in value if isinstance(inner, dict | list)]
            _check_numbers([inner for inner in value if isinstance(inner, int | float)], where, path)
        else:
            _check_numbers([value], where, path)
    dtype = plain.get("dtype", plain.get("torch_dtype"))
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise CheckpointError(
            f"{path}: dtype is {shorten(dtype)}, but weights must be float32, float16 or bfloat16: use the model as it "
            "was before it was quantised"
        )


def _check_field(name: str, value: Any, where: str, path: Path | str) -> None:
    if "_implementation" in where and isinstance(value, str) and value not in IMPLEMENTATIONS:
        raise CheckpointError(
            f"{path}: {shorten(where)} is {shorten(value)}, which may be code from elsewhere: set it to sdpa, or "
            "remove the field"
        )
    if name in POSITIVE and value is not None and not (isinstance(value, list) or (type(value) is int and value > 0)):
        raise CheckpointError(f"{path}: {where} is {shorten(value)}, not a positive number: fetch the model again")
    for pattern, most in (LAYERS, SIZES):
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number > most and pattern.search(name):
                raise CheckpointError(
                    f"{path}: {where} is {shorten(number)}, but a model has at most {most:,}: fetch the model again"
                )


def _check_numbers(values: Iterable[Any], where: str, path: Path | str) -> None:
    for value in values:
        too_large = isinstance(value, int) and abs(value) > LARGEST_INTEGER
        if too_large or (isinstance(value, float) and math.isnan(value)):
            raise CheckpointError(f"{path}: {where} is {shorten(value)}, which no model has: fetch the model again")


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
