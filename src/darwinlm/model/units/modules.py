"""A model's modules at every level, as surgery and search read them."""

from __future__ import annotations

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.expert_tensors import by_rows
from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.families.shapes import ModuleShape, module_shapes
from darwinlm.model.layer_sizes import LayerSizes, Place
from darwinlm.model.units.levels import Kept, Level, ModuleLevels, kept_groups, module_levels, with_owners
from darwinlm.model.units.unit_settings import UnitsSettings

_NO_METHOD = "only a reader of a method of pruning has levels between removed and whole"


class ModuleReader:
    """Modules of the dense model, with its weights, whole or removed.

    A method of pruning derives its reader: `best_columns` and `best_experts` decide what narrower levels keep, and
    `weight` gives the kept weights.

    Attributes:
        shapes: Sizes and tensors of every module, by block and kind.
        modules: Levels of every module, in the order of allocations.
    """

    def __init__(self, checkpoint: Checkpoint, units: UnitsSettings) -> None:
        self.checkpoint = checkpoint
        self.units = units
        self.shapes: dict[Place, ModuleShape] = {shape.place: shape for shape in module_shapes(checkpoint)}
        self.modules: tuple[ModuleLevels, ...] = tuple(
            module_levels(checkpoint.family, shape, units) for shape in self.shapes.values()
        )

    def best_columns(self, block: int, kind: ModuleKind, level: Level) -> Tensor:
        """Columns of the output projection, [k] int64 (or [e, k] of kept experts), ascending, for 0 < k < all."""
        raise NotImplementedError(_NO_METHOD)

    def best_experts(self, block: int, level: Level) -> Tensor:
        """Experts of a mixture, [e] int64, ascending, for 0 < e < all."""
        raise NotImplementedError(_NO_METHOD)

    def weight(self, block: int, kind: ModuleKind, level: Level) -> Tensor | None:
        """The output projection on kept columns, [r, k] float32 (or [e, r, k]); None if it is the dense one."""
        shape, columns = self.shapes[block, kind], self.columns(block, kind, level)
        experts = shape.sizes.experts
        if not level.sizes.width:
            outputs = int(self.checkpoint.config.hidden_size)
            return torch.empty(*((experts,) if experts else ()), outputs, 0)
        if level.sizes == shape.sizes:
            return None
        W = self.dense_weight(block, kind)
        if not experts:
            return W[:, columns]
        kept_experts = self.experts(block, level).tolist()
        return torch.stack([W[expert][:, kept] for expert, kept in zip(kept_experts, columns, strict=True)])

    def tensors(self, block: int, name: str = "") -> dict[str, Tensor]:
        """Tensors of a dense block whose name in it starts with `name`, which is removed from the names."""
        return self.checkpoint.read(self.checkpoint.block_prefix(block) + name)

    def release(self, reserve: int = 0) -> None:
        """Free the memory of what can be computed again; afterwards leave `reserve` bytes of the device free."""

    @property
    def cached_bytes(self) -> float:
        """Bytes of the device that all of what can be computed again would take."""
        return 0.0

    def experts(self, block: int, level: Level) -> Tensor:
        """Experts of a mixture that a level keeps, [e] int64, ascending."""
        if level.sizes.experts in (0, self.shapes[block, "mlp"].sizes.experts):
            return torch.arange(level.sizes.experts)
        return self.best_experts(block, level)

    def columns(self, block: int, kind: ModuleKind, level: Level) -> Tensor:
        """Columns of the output projection that a level keeps, [k] int64 (or [e, k] of kept experts), ascending."""
        full, sizes = self.shapes[block, kind].sizes, level.sizes
        if sizes.width in (0, full.width):
            columns = torch.arange(sizes.width)
            return columns.expand(sizes.experts, -1) if full.experts else columns
        return self.best_columns(block, kind, level)

    def kept(self, block: int, kind: ModuleKind, level: Level) -> Kept:
        """Columns and weights of a module at a level."""
        shape, columns = self.shapes[block, kind], self.columns(block, kind, level)
        groups, sizes = None, level.sizes
        if kind == "attention":
            groups, sizes = kept_groups(shape, sizes, columns)
        experts = self.experts(block, level) if shape.sizes.experts else None
        return Kept(sizes, columns, self.weight(block, kind, level), groups, experts)

    def sizes(self, block: int, kind: ModuleKind, level: Level) -> LayerSizes:
        """Sizes of a module at a level, with the KV group of each query head that stays."""
        if level.sizes.even:
            return level.sizes
        return with_owners(self.shapes[block, kind], level.sizes, self.columns(block, kind, level))

    def dense_weight(self, block: int, kind: ModuleKind) -> Tensor:
        """Output projection of the dense module, [r, d] float32, or [e, r, d] for the experts of a mixture."""
        return self._dense_weight(block, kind).float()

    def _dense_weight(self, block: int, kind: ModuleKind) -> Tensor:
        part, name = self.checkpoint.family.module(kind), self.shapes[block, kind].output
        return by_rows(part, name.removeprefix(part.prefix), self.tensors(block, name)[""])
