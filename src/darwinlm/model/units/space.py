"""The space of allocations: one level for every module.

An allocation is a tuple of level indices in the order of the modules. Index 0 means removed, the last index dense. A
module that is never cut has a single level, the dense one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import Family
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.layer_sizes import LayerSizes, Place
from darwinlm.model.units.levels import Level, ModuleLevels, module_levels
from darwinlm.model.units.unit_settings import UnitsSettings

Allocation = tuple[int, ...]
PerLevel = Sequence[Sequence[float]]
"""A number for every level of every module."""


@dataclass(frozen=True)
class SearchSpace:
    """Modules with their levels and costs. Modules are in the order of the allocation.

    Attributes:
        modules: The modules.
        beside: Number of parameters of a block, by its number, that belong to no module: norms that a removed one left.
    """

    modules: tuple[ModuleLevels, ...]
    beside: Mapping[int, int] = field(default_factory=dict)

    @property
    def dense(self) -> Allocation:
        """Every module at its last level."""
        return tuple(len(module.levels) - 1 for module in self.modules)

    def levels(self, allocation: Sequence[int]) -> list[Level]:
        """The chosen level of each module."""
        return [module.levels[index] for module, index in zip(self.modules, allocation, strict=True)]

    def sizes(self, allocation: Sequence[int]) -> dict[Place, LayerSizes]:
        """The chosen sizes of each module."""
        pairs = zip(self.modules, self.levels(allocation), strict=True)
        return {module.place: level.sizes for module, level in pairs}

    def params(self, allocation: Sequence[int]) -> int:
        """Block parameters of an allocation. A block without any module has none."""
        total = sum(self.beside.values()) + sum(level.params for level in self.levels(allocation))
        return total - sum(count for places, count in self.left if all(allocation[place] == 0 for place in places))

    @cached_property
    def left(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Modules of each block, by their places in an allocation, and parameters that go only with the last of them.

        These are norms that the removed modules have left; blocks without any aren't listed.
        """
        places: dict[int, list[int]] = {}
        for place, module in enumerate(self.modules):
            places.setdefault(module.block, []).append(place)
        counts = {
            tuple(of_block): self.beside.get(block, 0) + sum(self.modules[place].removed for place in of_block)
            for block, of_block in places.items()
            if not any(self.modules[place].levels[0].sizes.width for place in of_block)  # else one always stays
        }
        return tuple((of_block, count) for of_block, count in counts.items() if count)


def space_of(units: UnitsSettings, checkpoint: Checkpoint, shapes: Sequence[ModuleShape]) -> SearchSpace:
    """Modules and levels. Raises RecipeError if the units don't fit the model."""
    beside: Counter[int] = Counter()
    for shape in {shape.block: shape for shape in shapes}.values():
        prefix = checkpoint.block_prefix(shape.block)
        inside = {f"{prefix}{name}" for other in shapes if other.block == shape.block for name in other.tensors}
        parameters = checkpoint.outline.get_submodule(prefix.removesuffix(".")).named_parameters(prefix[:-1])
        beside[shape.block] = sum(parameter.numel() for name, parameter in parameters if name not in inside)
    levels = (module_levels(checkpoint.family, shape, units) for shape in shapes)
    return SearchSpace(tuple(levels), {block: count for block, count in beside.items() if count})


def kept_whole(space: SearchSpace, family: Family) -> str:
    """The modules that are never cut, as a clause: `linear attention of 18 blocks is kept`; empty if there are none.

    Parts of a mixture that are removed with the experts alone (`Mlp.kept`) count as well.
    """
    names: dict[str, str] = {"attention": "attention", "mlp": "MLP"}
    names |= {kind: part.title for kind, part in (("mixer", family.mixer), ("tail", family.tail)) if part is not None}
    never = Counter(names[module.kind] for module in space.modules if len(module.levels) == 1)
    mixtures = sum(1 for module in space.modules if family.mlp.kept and module.levels[-1].sizes.experts)
    never.update({family.mlp.kept: mixtures} if mixtures else {})
    parts = [f"{name} of {count} block{'s' if count > 1 else ''}" for name, count in never.items()]
    parts.sort(key=str.lower)
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    return f"{listed} {'is' if len(parts) == 1 else 'are'} kept" if parts else ""


def uniform_sizes(space: SearchSpace) -> Iterator[list[Allocation]]:
    """For each attention level and each number of experts the uniform allocations by ascending MLP level.

    If modules differ in size (in a pruned model), levels correspond by the share of the module that they keep.
    """
    cut = [(index, module) for index, module in enumerate(space.modules) if len(module.levels) > 1]
    heads = {index: range(len(module.levels)) for index, module in cut if module.kind == "attention"}
    mlp = {index: module for index, module in cut if module.kind == "mlp"}
    # Shares of experts that mixtures may keep, ascending; only 1 if there is no mixture.
    levels = ((level, module.levels[-1]) for module in mlp.values() for level in module.levels)
    parts = sorted({level.sizes.experts / full.sizes.experts for level, full in levels if level.sizes.experts}) or [1.0]
    for share, part in product(_shares(heads.values()), parts):
        widths = {index: _of_experts(module, part) for index, module in mlp.items()}
        sizes = []
        for width in _shares(widths.values()):
            candidate = list(space.dense)
            for index, levels_of_module in heads.items():
                candidate[index] = _index_at(levels_of_module, share)
            for index, levels_of_experts in widths.items():
                candidate[index] = _index_at(levels_of_experts, width)
            sizes.append(tuple(candidate))
        yield sizes


def _of_experts(module: ModuleLevels, part: float) -> list[int]:
    """Level indices of a module, ascending; for a mixture only those with this share of its experts, and 0."""
    full = module.levels[-1].sizes.experts
    counts = sorted({level.sizes.experts for level in module.levels if level.sizes.experts})
    count = min(counts, key=lambda count: (abs(count - part * full), -count), default=0)
    return [index for index, level in enumerate(module.levels) if level.sizes.experts in (0, count)]


def _shares(modules: Iterable[Sequence[int]]) -> list[float]:
    """Distinct relative positions in the lists of level indices, ascending; only 0 if there are none."""
    return sorted({at / (len(indices) - 1) for indices in modules for at in range(len(indices))}) or [0.0]


def _index_at(indices: Sequence[int], share: float) -> int:
    """The level index at a relative position in the list, rounded down."""
    return indices[int(share * (len(indices) - 1) + 1e-9)]
