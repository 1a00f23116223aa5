"""The space of allocations: one level for every module.

An allocation is a tuple of level indices in the order of the modules. Index 0 means removed, the last index dense. A
module that is never cut has a single level, the dense one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.database.levels import Level, ModuleLevels
from darwinlm.families.family import Family

Allocation = tuple[int, ...]
PerLevel = Sequence[Sequence[float]]
"""A number for every level of every module."""


@dataclass(frozen=True)
class SearchSpace:
    """Modules with their levels and costs. Modules are in the order of the allocation."""

    modules: tuple[ModuleLevels, ...]

    @property
    def dense(self) -> Allocation:
        """Every module at its last level."""
        return tuple(len(module.levels) - 1 for module in self.modules)

    def levels(self, allocation: Sequence[int]) -> list[Level]:
        """The chosen level of each module."""
        return [module.levels[index] for module, index in zip(self.modules, allocation, strict=True)]

    def params(self, allocation: Sequence[int]) -> int:
        """Block parameters of an allocation."""
        return sum(level.params for level in self.levels(allocation))


def kept_whole(space: SearchSpace, family: Family) -> str:
    """The modules that are never cut, as a clause: `linear attention of 18 blocks is kept`; empty if there are none.

    MLPs beside experts count as well: they are removed with the experts alone.
    """
    names: dict[str, str] = {"attention": "attention", "mlp": "MLP"}
    names |= {kind: part.title for kind, part in (("mixer", family.mixer), ("tail", family.tail)) if part is not None}
    never = Counter(names[module.kind] for module in space.modules if len(module.levels) == 1)
    beside = sum(1 for module in space.modules if not family.mlp.name and module.levels[-1].experts)
    never.update({"MLP beside experts": beside} if beside else {})
    parts = [f"{name} of {count} block{'s' if count > 1 else ''}" for name, count in never.items()]
    parts.sort(key=str.lower)
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    return f"{listed} {'is' if len(parts) == 1 else 'are'} kept" if parts else ""
