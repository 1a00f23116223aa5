"""The database on disk: one safetensors file per block, read a module at a time.

For each module and number of query heads per group it holds the columns in removal order, the packed factor, the
error of every width, and the target where the weights alone don't give it back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
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


def experts_to_tensors(factors: Iterable[NestedFactors]) -> dict[str, Tensor]:
    """Named tensors of a mixture's factors: those of the experts side by side along a new first dimension."""
    rows = [(own.columns.to(torch.int32), pack_lower(own.factor), own.errors) for own in factors]
    columns, factor, errors = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return {"mlp.1.columns": columns, "mlp.1.factor": factor, "mlp.1.errors": errors}


@dataclass(frozen=True)
class Kept:
    """What remains of a module at one level.

    Attributes:
        columns: [k] int64, kept columns of the output projection, ascending; [e, k] for the experts of a mixture.
        weight: [r, k] float32 (or [e, r, k]), the output projection's weights on them; None keeps the dense ones
            (nothing is gone).
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
        self._cache: OrderedDict[tuple[int, ModuleKind, int], tuple[NestedFactors, ...]] = OrderedDict()
        self._error_curves: dict[tuple[int, ModuleKind, int], Tensor] = {}
        self._cache_bytes = cache_bytes

    def shape(self, block: int, kind: ModuleKind) -> ModuleShape:
        """Sizes of a module."""
        return self.shapes[block, kind]

    def dense_weight(self, block: int, kind: ModuleKind) -> Tensor:
        """Output projection of the dense module, [r, d] float32, or [e, r, d] for the experts of a mixture."""
        name = self.checkpoint.block_prefix(block) + self.shape(block, kind).output
        return self.checkpoint.read(name, dtype=torch.float32)[""]

    def factors(self, block: int, kind: ModuleKind, heads: int) -> NestedFactors:
        """Factors of a module with so many query heads per group (1 for an MLP).

        Raises:
            ArtifactError: the file is damaged.
        """
        (factors,) = self._factors(block, kind, heads)
        return factors

    def _factors(self, block: int, kind: ModuleKind, heads: int) -> tuple[NestedFactors, ...]:
        """Factors of a module, for the experts of a mixture one each."""
        key = (block, kind, heads)
        if key not in self._cache:
            self._cache[key] = self._read(block, kind, heads)
            held = sum(_bytes(factors) for factors in self._cache.values())
            while held > self._cache_bytes and len(self._cache) > 1:
                held -= _bytes(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(key)
        return self._cache[key]

    def _read(self, block: int, kind: ModuleKind, heads: int) -> tuple[NestedFactors, ...]:
        found = self._tensors(block, f"{kind}.{heads}.")
        try:
            columns, packed, errors = found["columns"].long(), found["factor"], found["errors"]
        except KeyError as error:
            raise damaged(self.folder / block_file(block), str(error)) from error
        W = self.dense_weight(block, kind)
        if columns.ndim == 2:
            experts = zip(columns, packed, errors, W, strict=True)
            return tuple(_full_factors(own, lower, errs, weight) for own, lower, errs, weight in experts)
        if "target" not in found:
            return (_full_factors(columns, packed, errors, W),)
        return (NestedFactors(columns, unpack_lower(packed, len(columns)), found["target"], errors),)

    def _tensors(self, block: int, prefix: str) -> dict[str, Tensor]:
        """Stored tensors of a block whose name starts with a prefix, which is cut off. Raises ArtifactError."""
        path = self.folder / block_file(block)
        try:
            with safe_open(path, framework="pt") as stream:
                names = [name for name in stream.keys() if name.startswith(prefix)]  # noqa: SIM118
                return {name.removeprefix(prefix): stream.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise damaged(path, str(error)) from error

    def error(self, block: int, kind: ModuleKind, level: Level) -> float:
        """Squared output error of a level relative to the output's energy: 0 is dense, 1 is gone.

        The errors of a mixture's experts add up, each being weighted by how much the expert's output counts.
        """
        shape = self.shape(block, kind)
        if level.width == shape.width:
            return 0.0
        errors = self._errors(block, kind, level.heads or (shape.heads if kind == "attention" else 1))
        return float(errors[level.width] / errors[0]) if errors[0] else 0.0

    def _errors(self, block: int, kind: ModuleKind, heads: int) -> Tensor:
        """[d + 1] float64: squared output error of each width."""
        key = (block, kind, heads)
        if key not in self._error_curves:
            found = self._tensors(block, f"{kind}.{heads}.errors")
            if "" not in found:
                raise damaged(self.folder / block_file(block), f"no errors of {self.shape(block, kind).name}")
            errors = found[""]
            self._error_curves[key] = errors.sum(dim=0) if errors.ndim == 2 else errors
        return self._error_curves[key]

    def kept(self, block: int, kind: ModuleKind, level: Level) -> Kept:
        """Columns and weights of a module at a level."""
        shape = self.shape(block, kind)
        if level.width == shape.width:
            return Kept(torch.arange(shape.width), None)
        if level.width == 0:
            weight = self.dense_weight(block, kind)[..., :0]
            return Kept(torch.empty((*weight.shape[:-2], 0), dtype=torch.int64), weight)
        made = [_first_columns(factors, level.width) for factors in self._factors(block, kind, level.heads)]
        if not shape.experts:
            return made[0]
        weights = [own.weight for own in made if own.weight is not None]
        return Kept(torch.stack([own.columns for own in made]), torch.stack(weights))


def _first_columns(factors: NestedFactors, width: int) -> Kept:
    columns, order = factors.columns[:width].sort()
    return Kept(columns, kept_weights(factors, width)[:, order])


def _full_factors(columns: Tensor, packed: Tensor, errors: Tensor, W: Tensor) -> NestedFactors:
    """Factors over every column, whose target the dense weights give back."""
    factor = unpack_lower(packed, len(columns))
    return NestedFactors(columns, factor, full_target(factor, W, columns), errors)


def _bytes(factors: tuple[NestedFactors, ...]) -> int:
    tensors = (tensor for own in factors for tensor in (own.columns, own.factor, own.target, own.errors))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
