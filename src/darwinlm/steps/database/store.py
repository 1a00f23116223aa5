"""Reader of the database on disk, which computes any module at any level from its factors."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.units.levels import Level, variants
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.space import PerLevel, SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import open_tensors
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.memory import ALL, CPU, Bounded, memory_of
from darwinlm.steps.database.block_files import block_file
from darwinlm.steps.database.factors import NestedFactors, full_target, kept_weights, narrower_factors, unpack_lower

DISK_SHARE = 0.5
"""Share of the free disk for targets of factors that don't fit into the memory of a CPU."""


class DatabaseReader(ModuleReader):
    """Reads any module at any level.

    Searches repeatedly need the factors of all modules in turn. As many as fit stay on the device, on which weights are
    computed from them. The inputs of the others stay in main memory, pinned if a GPU reads them. On a CPU, a target
    takes longer to compute than to read, so those that don't fit wait in files. The checkpoint is the dense model's.

    Attributes:
        reads: Number of factors read from files.
    """

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, units: UnitsSettings, *, device: torch.device = CPU
    ) -> None:
        super().__init__(checkpoint, units)
        self.folder = folder
        self.device = device
        self.reads = 0
        self._small: dict[int, dict[str, Tensor]] = {}
        self._of_block: dict[tuple[int, ModuleKind, int], tuple[NestedFactors, ...]] = {}  # the last one
        memory = memory_of(device)
        self._factors: Bounded[tuple[int, ModuleKind, int], tuple[NestedFactors, ...]] = memory.watch(
            Bounded(
                lambda factors: sum(factor.nbytes for factor in factors), partial(memory.room, "factors"), scanned=True
            )
        )
        self._stored: Bounded[tuple[int, ModuleKind], tuple[Tensor, Tensor]] = Bounded(
            _bytes, partial(memory_of(CPU).room, "packed factors"), scanned=True
        )
        self._scratch: Path | None = None
        self._targets: Bounded[tuple[int, ModuleKind], tuple[Tensor, ...]] = Bounded(
            _bytes, self._disk_room, scanned=True
        )

    def variant(self, block: int, kind: ModuleKind, level: Level) -> int:
        """The variant of a module that a level belongs to."""
        known = variants(self.shapes[block, kind], self.units)
        heads = level.sizes.heads_per_group
        return heads if heads in known else known[-1]

    def factors(self, block: int, kind: ModuleKind, variant: int) -> tuple[NestedFactors, ...]:
        """Factors of one variant of a module: one for each expert of a mixture, else one. Raises ArtifactError."""
        key = (block, kind, variant)
        self._of_block = {place: errors for place, errors in self._of_block.items() if place[0] == block}
        factors = self._of_block.get(key) or self._factors.get(key)
        if factors is None:
            factors = self._computed(block, kind, variant)
            if not self._factors.put(key, factors) and variant == variants(self.shapes[block, kind], self.units)[-1]:
                self._spill(block, kind, factors)
        self._of_block[key] = factors
        return factors

    def spill_into(self, folder: Path) -> None:
        """Let targets that a CPU's memory has no room for wait in files of a folder, until `release`."""
        if self.device.type == "cpu":
            self._scratch = folder
            self._targets.reserve(0)

    def _spill(self, block: int, kind: ModuleKind, factors: tuple[NestedFactors, ...]) -> None:
        targets = tuple(factor.target for factor in factors)
        if self._scratch is None or self._targets.get((block, kind)) is not None:
            return
        if self._targets.has_room(_bytes(targets)):
            self._targets.put((block, kind), tuple(in_file(target, self._scratch) for target in targets))

    def _disk_room(self, _: int) -> int:
        assert self._scratch is not None
        return int(DISK_SHARE * shutil.disk_usage(self._scratch).free) // parallel.local_size()

    def release(self, reserve: int = 0) -> None:
        """Release factors and files of targets; factors are computed again, and leave `reserve` bytes of the device.

        If it is all of them, main memory is released too.
        """
        self._of_block = {}
        if reserve == ALL:
            self._stored.clear()
        self._factors.reserve(reserve)
        self._targets.clear()
        self._scratch = None

    @property
    def cached_bytes(self) -> float:
        """Bytes of the factors of all modules, in all variants, on the device."""
        return float(
            sum(len(variants(shape, self.units)) * self._factor_bytes(shape) for shape in self.shapes.values())
        )

    def _factor_bytes(self, shape: ModuleShape) -> int:
        """Bytes of a factor and a target on the device."""
        sizes = shape.sizes
        outputs = int(self.checkpoint.config.hidden_size)
        return 4 * max(sizes.experts, 1) * sizes.width * (sizes.width + outputs)

    def _computed(self, block: int, kind: ModuleKind, variant: int) -> tuple[NestedFactors, ...]:
        shape = self.shapes[block, kind]
        last = variants(shape, self.units)[-1]
        columns = self._curves(block)[f"{kind}.{variant}.columns"].long()
        if variant != last:
            (whole,) = self.factors(block, kind, last)
            return (narrower_factors(whole, columns),)
        packed, W = (tensor.to(self.device, non_blocking=True) for tensor in self._read(block, kind))
        targets: Sequence[Tensor | None] = self._targets.get((block, kind)) or [None] * max(shape.sizes.experts, 1)
        if not shape.sizes.experts:
            return (_full_factors(columns, packed, W, targets[0]),)
        return tuple(map(_full_factors, columns, packed, W, targets))

    def _read(self, block: int, kind: ModuleKind) -> tuple[Tensor, Tensor]:
        """Packed factor and dense output projection of a module (of each expert).

        They are cached in main memory if the factors don't fit on the device.
        """
        stored = self._stored.get((block, kind))
        if stored is None:
            with open_tensors(self.folder / block_file(block)) as stream:
                stored = stream.get_tensor(f"{kind}.factor"), self._dense_weight(block, kind)
            self.reads += 1
            shape = self.shapes[block, kind]
            size = self._factor_bytes(shape)
            if self.device.type != "cpu" and not self._factors.has_room(size):
                if self.device.type == "cuda":
                    stored = stored[0].pin_memory(), stored[1].pin_memory()
                self._stored.put((block, kind), stored)
        return stored

    def _curves(self, block: int) -> dict[str, Tensor]:
        """Stored tensors of a block by name, except its factors; kept in memory. Raises ArtifactError."""
        if block not in self._small:
            with open_tensors(self.folder / block_file(block)) as stream:
                names = [name for name in stream.keys() if not name.endswith(".factor")]  # noqa: SIM118
                self._small[block] = {name: stream.get_tensor(name) for name in names}
        return self._small[block]

    def error(self, block: int, kind: ModuleKind, level: Level) -> float:
        """Squared output error of a level relative to the output's energy: 0 is dense, 1 is removed.

        Errors of a mixture's experts add up. Raises ArtifactError if the file is damaged.
        """
        shape = self.shapes[block, kind]
        if level.sizes == shape.sizes:
            return 0.0
        if level.sizes.experts:
            curves = self._curves(block)["mlp.1.errors"]
            energy = float(curves[:, 0].sum())
            lost = self._dropped(curves, level, block) / energy if energy else 0.0
            return lost + (1 - lost) * self._narrowed(curves, level, block)
        errors = self._curves(block)[f"{kind}.{self.variant(block, kind, level)}.errors"]
        energy = float(errors[..., 0].sum())
        return float(errors[..., level.sizes.width].sum()) / energy if energy else 0.0

    def loss(self, block: int, kind: ModuleKind, level: Level) -> float | None:
        """Estimated loss of the model with this module alone at the level, in nats per token; None without an estimate.

        Tokens of removed experts are assumed to be spread evenly over the others. Raises ArtifactError if the file is
        damaged.
        """
        if level.sizes == self.shapes[block, kind].sizes:
            return 0.0
        name = f"{kind}.{self.variant(block, kind, level)}.losses"
        curves = self._curves(block).get(name)
        if curves is None:
            return None
        if level.sizes.experts:
            dropped = self._dropped(curves, level, block)
            return dropped + float(curves[:, 0].sum()) * self._narrowed(curves, level, block)
        shared = self._curves(block).get(f"{kind}.shared_loss", 0.0) if not level.sizes.width else 0.0
        return float(curves[..., level.sizes.width].sum() + shared)

    def local_errors(self, space: SearchSpace) -> PerLevel:
        """Relative local error of every level of every module."""
        return [[self.error(module.block, module.kind, level) for level in module.levels] for module in space.modules]

    def estimated_losses(self, space: SearchSpace) -> PerLevel | None:
        """Loss of every level of every module alone, in nats per token; None where the database has no estimates."""
        rows = [[self.loss(module.block, module.kind, level) for level in module.levels] for module in space.modules]
        known = [[loss for loss in row if loss is not None] for row in rows]
        return known if known == rows else None

    def _dropped(self, curves: Tensor, level: Level, block: int) -> float:
        """Sum over the experts that a level removes, from curves [e, p + 1]."""
        return float(curves[self._by_loss(block)[level.sizes.experts :], 0].sum())

    def _narrowed(self, curves: Tensor, level: Level, block: int) -> float:
        """Error of narrowing the kept experts, from curves [e, p + 1], relative to their energy."""
        kept = curves[self._by_loss(block)[: level.sizes.experts]]
        total = float(kept[:, 0].sum())
        return float(kept[:, level.sizes.width].sum()) / total if total else 0.0

    def _by_loss(self, block: int) -> Tensor:
        """Experts of a mixture, [e] int64, by the loss without each of them alone, or its error; the largest first."""
        curves = self._curves(block)
        alone = curves.get("mlp.1.losses", curves["mlp.1.errors"])[:, 0]
        return alone.argsort(descending=True, stable=True)

    def best_experts(self, block: int, level: Level) -> Tensor:
        """Experts of a mixture that a level keeps, [e] int64, ascending."""
        return self._by_loss(block)[: level.sizes.experts].sort().values

    def best_columns(self, block: int, kind: ModuleKind, level: Level) -> Tensor:
        """Columns of the output projection that a level keeps, [k] int64 (or [e, k] of kept experts), ascending."""
        columns = self._curves(block)[f"{kind}.{self.variant(block, kind, level)}.columns"].long()
        if self.shapes[block, kind].sizes.experts:
            columns = columns[self.experts(block, level)]
        return columns[..., : level.sizes.width].sort(dim=-1).values

    def weight(self, block: int, kind: ModuleKind, level: Level) -> Tensor | None:
        """The corrected output projection on kept columns, [r, k] float32 (or [e, r, k]); None if it is dense."""
        shape = self.shapes[block, kind]
        if level.sizes.width in (0, shape.sizes.width):
            return super().weight(block, kind, level)
        factors = self.factors(block, kind, self.variant(block, kind, level))
        places = self.experts(block, level).tolist() if shape.sizes.experts else range(len(factors))
        weights = [
            kept_weights(factors[place], level.sizes.width)[:, factors[place].columns[: level.sizes.width].argsort()]
            for place in places
        ]
        return torch.stack(weights) if shape.sizes.experts else weights[0]


def _full_factors(columns: Tensor, packed: Tensor, W: Tensor, target: Tensor | None) -> NestedFactors:
    """Factors over every column, on the device of the packed factor; an unknown target is computed from the weights."""
    factor, columns = unpack_lower(packed, len(columns)), columns.to(packed.device)
    return NestedFactors(columns, factor, full_target(factor, W, columns) if target is None else target)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
