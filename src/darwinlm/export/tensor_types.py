"""A type for each tensor of a GGUF file: the least estimated loss of a file of a given size.

Losses of single tensors are estimated from gradients (`calibration/rounding.py`) with the rounding of llama.cpp's own
quantiser, and add up. So the choice is a knapsack with one type for each tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darwinlm.calibration.rounding import Losses, rounding_losses
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import Family
from darwinlm.gguf.layout import Layout
from darwinlm.gguf.quantise import Scratch, all_types, dequantise, rounded, roundings, types_for
from darwinlm.gguf.sizes import BYTES
from darwinlm.gguf.tensors import FUSED, MLP_PARTS, PARTS, gguf_tensors, place_of
from darwinlm.gguf.write import check_rows, is_exact
from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.stream import BlockStream
from darwinlm.surgery.reshape import Reshaper

UNKNOWN = "Q8_0"
"""Type of matrices whose loss isn't known, such as convolutions; it loses next to nothing."""
WHOLE = {**FUSED, "ffn_gate_up_exps": tuple(f"{part}_exps" for part in MLP_PARTS)}
"""Tensors that join those of several projections in the file."""
LOSS_TOKENS = 4096
"""Tokens that losses of types are estimated on."""
ALIGNMENT = 32
"""Bytes of which a tensor in a file takes a multiple."""


@dataclass(frozen=True)
class FileSize:
    """The largest size of a file in bytes, and what gives the losses by which types are chosen (`type_losses`)."""

    bytes: int
    losses: Callable[[], Losses]


@dataclass(frozen=True)
class TensorTypes:
    """Types of the tensors of a file by name.

    Attributes:
        loss: Estimated loss of all together, in nats per token.
        bytes: Size of all tensors of the file.
    """

    types: dict[str, str]
    loss: float
    bytes: int


def type_losses(
    checkpoint: Checkpoint,
    tokens: Tensor,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    batch_tokens: int,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    narrower: bool = False,
) -> Losses:
    """Estimated loss of every matrix of a model in every type, in nats per token, on tokens [n, t].

    With `narrower`, output projections are also rounded to the types that they need once columns are removed.

    Files are written to `folder` meanwhile, as large as one block in all types.

    Raises:
        MissingExtraError, EngineError: llama.cpp isn't installed, or refuses.
        NumericsError, StorageError: See `rounding_losses`.
    """
    family = checkpoint.family
    outputs = [f".{family.module(kind).output}.weight" for kind in ("attention", "mlp")]
    if family.mlp.experts is not None:
        outputs.append(f".{family.mlp.experts.name}.{family.mlp.experts.output}")

    def kinds_of(name: str, columns: int) -> Sequence[str]:
        return all_types(columns) if narrower and name.endswith(tuple(outputs)) else types_for(columns)

    def round_all(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".types-") as work:
            for name, row in roundings(weights, Path(work), kinds_of, dtype=checkpoint.dtype, threads=threads).items():
                yield from ((name, kind, dequantise(raw, kind)) for kind, raw in row.items())

    memory = HiddenMemory(folder)
    stream = BlockStream(checkpoint, tokens, dtype=dtype, device=device, batch_tokens=batch_tokens, memory=memory)
    return rounding_losses(stream, tokens, round_all, memory, progress)


def room_for(reshaper: Reshaper, layout: Layout, room: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of the tensors that have a choice of types, and what `room` leaves for them.

    Raises BudgetError if that is too little, and ExportError if a tensor's rows fit no type.
    """
    shapes, left = {}, room
    for name, tensor in gguf_tensors(reshaper, layout):
        check_rows(name, tensor, "a bound on the file")
        if is_exact(name, tensor):
            left -= tensor_bytes(tensor.shape, "F32")
        else:
            shapes[name] = tuple(tensor.shape)
    kinds = {name: types_for(shape[-1]) for name, shape in shapes.items()}
    _check_room([[tensor_bytes(shapes[name], kind) for kind in row] for name, row in kinds.items()], left, room)
    return shapes, left


def _check_room(costs: Sequence[Sequence[int]], left: int, room: int) -> None:
    needed = room - left + sum(map(min, costs))
    if needed > room:
        raise BudgetError(
            f"even the smallest types need {size(needed)} for the tensors, but the file has room for "
            f"{size(max(room, 0))}: allow a larger file, or prune the model"
        )


def choose_types(reshaper: Reshaper, layout: Layout, losses: Losses, room: int) -> TensorTypes:
    """The types with the least sum of losses with which all tensors take at most `room` bytes. Raises BudgetError."""
    shapes, left = room_for(reshaper, layout, room)
    known = _in_file(losses, reshaper, layout, shapes)
    kinds = {name: tuple(known[name]) if name in known else (UNKNOWN,) for name in shapes}
    costs = [[tensor_bytes(shapes[name], kind) for kind in kinds[name]] for name in shapes]
    _check_room(costs, left, room)
    by_kind = [[known.get(name, {}).get(kind, 0.0) for kind in kinds[name]] for name in shapes]
    chosen = solve_knapsack(by_kind, costs, 0, left, words=f"0 and {left:,} bytes")
    return TensorTypes(
        {name: kinds[name][at] for name, at in zip(shapes, chosen, strict=True)},
        sum(row[at] for row, at in zip(by_kind, chosen, strict=True)),
        room - left + sum(row[at] for row, at in zip(costs, chosen, strict=True)),
    )


def tensor_bytes(shape: Sequence[int], kind: str) -> int:
    """Bytes of a tensor in a type, with its alignment in the file."""
    block, stored = BYTES[kind]
    return -(-prod(shape) // block * stored // ALIGNMENT) * ALIGNMENT


def _in_file(
    losses: Losses, reshaper: Reshaper, layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, float]]:
    """Losses by the names of tensors in the file.

    A tensor of several weights has the sum of their losses. Of a weight that becomes several tensors, each has a part
    in proportion to its size. Types are those that fit the rows in the file.
    """
    checkpoint, family = reshaper.checkpoint, reshaper.family
    numbers = {target.block: number for number, target in enumerate(layout.targets)}
    prefix, places, own = f"{family.layers}.", {}, _own_places(family)
    for name in losses:
        block, _, inside = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            places[name] = str(place_of(name, family, layout))
        elif int(block) in numbers:
            place = own.get(inside) or place_of(f"{prefix}0.{inside}", family, layout)
            places[name] = f"blk.{numbers[int(block)]}.{place}"
    found: dict[str, dict[str, float]] = {}
    for name, place in places.items():
        for target, share in _targets(place, shapes, set(places.values())).items():
            kept = found.setdefault(target, {})
            for kind, loss in losses[name].items():
                kept[kind] = kept.get(kind, 0.0) + share * loss
    if checkpoint.config.tie_word_embeddings and "output.weight" in shapes and "token_embd.weight" in found:
        found["output.weight"] = found["token_embd.weight"]
    return {
        name: {kind: row[kind] for kind in all_types(shapes[name][-1]) if kind in row} for name, row in found.items()
    }


def _own_places(family: Family) -> dict[str, str]:
    """Places of a block's projections by their names in it, whether or not the file has these as tensors."""
    attention, mlp = family.attention, family.mlp
    inputs = [f"{attention.name}.{name}.weight" for name in (*attention.query, *attention.key_value)]
    places = {name: "attn_qkv" if inputs.count(name) > 1 else part for name, part in zip(inputs, PARTS, strict=False)}
    if mlp.name:
        inputs = [f"{mlp.name}.{name}.weight" for name in mlp.inputs]
        places |= zip(inputs, MLP_PARTS[-len(inputs) :], strict=True)
        places[f"{mlp.name}.{mlp.output}.weight"] = "ffn_down"
    if mlp.experts is not None:
        holder = f"{mlp.prefix}{mlp.experts.name}"
        inputs = [f"{holder}.{name}.{number}" for number, name in enumerate(mlp.experts.inputs)]
        places |= zip(inputs, (f"{part}_exps" for part in MLP_PARTS[-len(inputs) :]), strict=True)
        places[f"{holder}.{mlp.experts.output}"] = "ffn_down_exps"
    return {name: f"{place}.weight" for name, place in places.items()}


def _targets(place: str, shapes: Mapping[str, tuple[int, ...]], places: set[str]) -> dict[str, float]:
    """Tensors of the file that the weight at a place becomes, with their shares of it; `places` are those of all."""
    start, _, leaf = place.removesuffix(".weight").rpartition(".")
    for whole, parts in WHOLE.items():
        if leaf in parts and place not in shapes:
            return {f"{start}.{whole}.weight": 1.0}
        others = [f"{start}.{part}.weight" for part in parts if part != leaf]
        if leaf == whole and any(name in shapes and name not in places for name in others):
            split = [name for name in (f"{start}.{part}.weight" for part in parts) if name in shapes]
            total = sum(prod(shapes[name]) for name in split)
            return {name: prod(shapes[name]) / total for name in split}
    return {place: 1.0} if place in shapes else {}


def rounded_tensors(
    reshaper: Reshaper, layout: Layout, types: Mapping[str, str], folder: Path, threads: int
) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """The type and the bytes of every tensor with a type, mapped from files in `folder`. Raises as `rounded` does."""
    dtype = reshaper.checkpoint.dtype
    shapes = {name: tuple(tensor.shape) for name, tensor in gguf_tensors(reshaper, layout)}
    scratches = {
        kind: Scratch(
            folder / f"{kind}.gguf", {name: shapes[name] for name in shapes if types.get(name) == kind}, dtype
        )
        for kind in sorted(set(types.values()))
    }
    for name, tensor in gguf_tensors(reshaper, layout):
        if name in types:
            scratches[types[name]].add(tensor)
    for scratch in scratches.values():
        scratch.close()
    found = rounded([(scratch, [kind]) for kind, scratch in scratches.items()], threads)
    return {name: (types[name], found[name][types[name]]) for name in types}
