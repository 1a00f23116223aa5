"""The database on disk: one safetensors file per block, read a module at a time.

For each module and number of query heads per group it holds the columns in removal order, the packed factor, the
error of every width, and the target where the weights alone don't give it back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from darwinlm.artifact import damaged
from darwinlm.database.factors import NestedFactors, full_target, kept_weights, pack_lower, unpack_lower
from darwinlm.database.levels import Level, ModuleLevels, module_levels
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import ModuleKind
from darwinlm.families.shapes import ModuleShape, module_shapes
from darwinlm.recipe import Units


def block_file(block: int) -> str:
    """File name of one block."""
    return f"block_{block:04d}.safetensors"


def factors_to_tensors(shape: ModuleShape, heads: int, factors: NestedFactors) -> dict[str, Tensor]:
    """Named tensors of one module's factors for a number of query heads per group."""
    prefix = f"{shape.kind}.{heads}."
    tensors = {
        prefix + "columns": factors.columns.to(torch.int32),
        prefix + "factor": pack_lower(factors.factor),
        prefix + "errors": factors.errors,
    }
    if len(factors.columns) != shape.width:
        tensors[prefix + "target"] = factors.target
    return tensors


@dataclass(frozen=True)
class Kept:
    """What remains of a module at one level.

    Attributes:
        columns: [k] int64, kept columns of the output projection, ascending.
        weight: [r, k] float32, the output projection's weights on them; None keeps the dense ones (nothing is gone).
    """

    columns: Tensor
    weight: Tensor | None


class DatabaseReader:
    """Produces any module at any level.

    Args:
        folder: of the finished database.
        checkpoint: the model it was made from.
        units: the units it was made with.
        cache_bytes: factors that stay in memory.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, units: Units, *, cache_bytes: int = 2 << 30) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.shapes = {(shape.block, shape.kind): shape for shape in module_shapes(checkpoint)}
        self.modules: tuple[ModuleLevels, ...] = tuple(
            module_levels(checkpoint.family, shape, units) for shape in self.shapes.values()
        )
        self._cache: OrderedDict[tuple[int, ModuleKind, int], NestedFactors] = OrderedDict()
        self._cache_bytes = cache_bytes

    def shape(self, block: int, kind: ModuleKind) -> ModuleShape:
        """Sizes of a module."""
        return self.shapes[block, kind]

    def dense_weight(self, block: int, kind: ModuleKind) -> Tensor:
        """Output projection of the dense module, [r, d] float32."""
        part = self.checkpoint.family.module(kind)
        name = f"{self.checkpoint.block_prefix(block)}{part.name}.{part.output}.weight"
        return self.checkpoint.read(name, dtype=torch.float32)[""]

    def factors(self, block: int, kind: ModuleKind, heads: int) -> NestedFactors:
        """Factors of a module with so many query heads per group (1 for an MLP).

        Raises:
            ArtifactError: the file is damaged.
        """
        key = (block, kind, heads)
        if key not in self._cache:
            self._cache[key] = self._read(block, kind, heads)
            held = sum(_bytes(factors) for factors in self._cache.values())
            while held > self._cache_bytes and len(self._cache) > 1:
                held -= _bytes(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(key)
        return self._cache[key]

    def _read(self, block: int, kind: ModuleKind, heads: int) -> NestedFactors:
        path = self.folder / block_file(block)
        prefix = f"{kind}.{heads}."
        try:
            with safe_open(path, framework="pt") as stream:
                found = {name: stream.get_tensor(name) for name in stream.keys() if name.startswith(prefix)}  # noqa: SIM118
                columns, packed = found[prefix + "columns"].long(), found[prefix + "factor"]
                errors = found[prefix + "errors"]
        except (OSError, SafetensorError, KeyError) as error:
            raise damaged(path, str(error)) from error
        factor = unpack_lower(packed, len(columns))
        target = found.get(prefix + "target")
        if target is None:
            target = full_target(factor, self.dense_weight(block, kind), columns)
        return NestedFactors(columns, factor, target, errors)

    def error(self, block: int, kind: ModuleKind, level: Level) -> float:
        """Squared output error of a level relative to the output's energy: 0 is dense, 1 is gone."""
        shape = self.shape(block, kind)
        if level.width == shape.width:
            return 0.0
        factors = self.factors(block, kind, level.heads or (shape.heads if kind == "attention" else 1))
        if factors.total == 0:
            return 0.0
        return float(factors.errors[level.width]) / factors.total

    def kept(self, block: int, kind: ModuleKind, level: Level) -> Kept:
        """Columns and weights of a module at a level."""
        shape = self.shape(block, kind)
        if level.width == shape.width:
            return Kept(torch.arange(shape.width), None)
        if level.width == 0:
            return Kept(torch.arange(0), self.dense_weight(block, kind)[:, :0])
        factors = self.factors(block, kind, level.heads)
        weight = kept_weights(factors, level.width)
        columns, order = factors.columns[: level.width].sort()
        return Kept(columns, weight[:, order])


def _bytes(factors: NestedFactors) -> int:
    tensors = (factors.columns, factors.factor, factors.target, factors.errors)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
