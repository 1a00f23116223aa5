"""Bounds on the numbers of a model's description, checked before allocations and loops.

This check covers configurations of checkpoints, GGUF headers and imported models. Numbers must have realistic sizes,
and a model can't have more blocks than its files have tensors for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import DEPTH, shorten

_NAMES = yaml.safe_load(resources.files("darwinlm.families").joinpath("bounds.yaml").read_text(encoding="utf-8"))
LIMITS: dict[str, int] = {name: most for most, names in _NAMES["largest"].items() for name in names}
MAY_BE_ZERO, BY_LAYER = frozenset(_NAMES["may_be_zero"]), frozenset(_NAMES["by_layer"])
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
    waiting: list[tuple[str, Any, int]] = [("", plain, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        if depth > DEPTH:
            raise CheckpointError(f"{path} is nested more than {DEPTH} levels deep: fetch the model again")
        if isinstance(value, Mapping):
            for name, inner in value.items():
                _check_field(str(name), inner, f"{where}.{name}" if where else str(name), path)
                waiting.append((f"{where}.{name}" if where else str(name), inner, depth + 1))
        elif isinstance(value, list):
            waiting += [(where, inner, depth + 1) for inner in value if isinstance(inner, dict | list)]
            _check_numbers([inner for inner in value if isinstance(inner, int | float)], where, path)
        else:
            _check_numbers([value], where, path)
    dtype = plain.get("dtype", plain.get("torch_dtype"))
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise CheckpointError(
            f"{path}: dtype is {shorten(dtype)}, but weights must be float32, float16 or bfloat16: use the model as it "
            "was before it was quantised"
        )
    _check_layers(plain, path)


def _check_field(name: str, value: Any, where: str, path: Path | str) -> None:
    if "_implementation" in where and isinstance(value, str) and value not in IMPLEMENTATIONS:
        raise CheckpointError(
            f"{path}: {shorten(where)} is {shorten(value)}, which may be code from elsewhere: set it to sdpa, or "
            "remove the field"
        )
    name = name.rpartition(".")[2]
    most, least = LIMITS.get(name), int(name not in MAY_BE_ZERO)
    if most is None or value is None:
        return
    for number in value if isinstance(value, list) and name in BY_LAYER else [value]:
        if isinstance(number, bool) or not isinstance(number, int):
            raise CheckpointError(f"{path}: {where} is {shorten(number)}, not a whole number: fetch the model again")
        if not least <= number <= most:
            raise CheckpointError(
                f"{path}: {where} is {shorten(number)}, but a model has from {least} to {most:,}: fetch the model again"
            )


def _check_numbers(values: Iterable[Any], where: str, path: Path | str) -> None:
    for value in values:
        too_large = isinstance(value, int) and abs(value) > LARGEST_INTEGER
        if too_large or (isinstance(value, float) and math.isnan(value)):
            raise CheckpointError(f"{path}: {where} is {shorten(value)}, which no model has: fetch the model again")


def _check_layers(plain: Mapping[str, Any], path: Path | str) -> None:
    layers = plain.get("per_layer_config")
    if layers is None:
        return
    blocks = plain.get("num_hidden_layers")
    if not isinstance(layers, dict) or not isinstance(blocks, int):
        raise CheckpointError(f"{path}: per_layer_config must map layers to their sizes: fetch the model again")
    for number, row in layers.items():
        if not re.fullmatch(r"\d{1,9}", str(number)) or int(number) >= blocks or not isinstance(row, dict):
            raise CheckpointError(
                f"{path}: per_layer_config has an entry {shorten(str(number))}, but a layer is a number below {blocks} "
                "with a mapping of sizes: fetch the model again"
            )
        skip, owners = row.get("skip", []), row.get("query_groups") or []
        if not isinstance(skip, list) or not all(isinstance(name, str) for name in skip):
            raise CheckpointError(f"{path}: per_layer_config.{number}.skip must list sub-layers: fetch the model again")
        if not isinstance(owners, list) or not all(isinstance(group, int) for group in owners):
            raise CheckpointError(
                f"{path}: per_layer_config.{number}.query_groups must list KV heads: fetch the model again"
            )


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
