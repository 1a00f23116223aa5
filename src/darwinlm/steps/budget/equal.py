"""Allocations with equal layers: all remaining blocks have the same sizes, and whole blocks may be removed.

Stock engines run such models with the family's own class. There are few of them: a size of attentions, a number of
experts and a number of removed blocks determine the widest MLP within the budget. For losses that are sums over modules
the best blocks to remove at given sizes are those that lose least, so enumeration replaces the knapsack.

Letters: w MLP widths, b blocks that can be removed, d their number plus one, n modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import Allocation, PerLevel, SearchSpace, uniform_sizes
from darwinlm.runtime.errors import BudgetError

FIRST = 12
"""Allocations of the lowest predicted losses that are measured as first parents."""


@dataclass(frozen=True)
class EqualLayers:
    """All allocations with equal layers.

    Attributes:
        cost: Cost of allocations.
        upper: Maximum cost of the modules.
        sizes: For each size of attentions and number of experts the allocations without a removed block, by ascending
            MLP width.
        blocks: Indices of the modules of each block that can be removed.
    """

    cost: CostModel
    upper: int
    sizes: tuple[tuple[Allocation, ...], ...]
    blocks: tuple[tuple[int, ...], ...]

    def __contains__(self, allocation: Allocation) -> bool:
        """Whether these are the sizes of an allocation without a removed block."""
        return any(allocation in sizes for sizes in self.sizes)

    def best(self, losses: PerLevel) -> list[Allocation]:
        """Allocations within the budget by ascending sum of `losses`.

        There is one for each size of attentions, number of experts and number of removed blocks. Raises BudgetError if
        none fits.
        """
        fitting = sorted(best for sizes in self.sizes for best in self._at(sizes, losses))
        if not fitting:
            raise BudgetError(
                f"no model with equal layers has at most {self.cost.words(self.upper + self.cost.fixed)}: raise the "
                "budget, or set search.layers=unequal"
            )
        return list(dict.fromkeys(allocation for _, allocation in fitting))

    def _at(self, sizes: tuple[Allocation, ...], losses: PerLevel) -> Iterator[tuple[float, Allocation]]:
        """The best allocation for each number of removed blocks, with its sum of losses."""
        levels = np.asarray(sizes)  # [w, n]
        loss, cost = self._sums(levels, losses), self._sums(levels, self.cost.costs)
        order = np.argsort(loss[1], axis=1, kind="stable")  # [w, b]
        total, price = (_removed(dense, change, order) for dense, change in (loss, cost))  # [w, d]
        total = np.where(price <= self.upper, total, np.inf)
        for count in range(self.most_removed + 1):
            width = int(total[:, count].argmin())
            if np.isfinite(total[width, count]):
                gone = {int(block) for block in order[width, :count]}
                yield float(total[width, count]), self._without(sizes[width], gone)

    def _sums(self, levels: np.ndarray, table: PerLevel) -> tuple[np.ndarray, np.ndarray]:
        """Sum [w] over all modules at their levels, and its change [w, b] if a block is removed."""
        at = np.stack([np.asarray(row)[levels[:, index]] for index, row in enumerate(table)], axis=1)
        gone = at - np.asarray([row[0] for row in table])
        change = [-gone[:, list(block)].sum(axis=1) for block in self.blocks]
        return at.sum(axis=1), np.stack(change, axis=1) if change else np.zeros((len(levels), 0))

    @property
    def most_removed(self) -> int:
        """Largest number of removed blocks: one must remain."""
        removable = {index for block in self.blocks for index in block}
        everything = removable == set(range(len(self.cost.costs)))
        return len(self.blocks) - int(everything)

    @property
    def smallest(self) -> int:
        """Cost of the smallest model."""
        gone = set(range(self.most_removed))
        return min(self.cost.of(self._without(sizes[0], gone)) for sizes in self.sizes)

    def first(self, losses: PerLevel) -> list[Allocation]:
        """Allocations to begin with: those of the lowest losses, and the best one for each number of removed blocks."""
        ranked = self.best(losses)
        by_count: dict[int, Allocation] = {}
        for allocation in ranked:
            removed = sum(not any(allocation[index] for index in block) for block in self.blocks)
            by_count.setdefault(removed, allocation)
        return list(dict.fromkeys([*ranked[:FIRST], *by_count.values()]))

    def _without(self, allocation: Allocation, gone: set[int]) -> Allocation:
        removed = {index for number in gone for index in self.blocks[number]}
        return tuple(0 if index in removed else level for index, level in enumerate(allocation))

    def _widest(self, sizes: tuple[Allocation, ...], gone: set[int]) -> Allocation | None:
        """The widest MLPs within the budget without these blocks."""
        limit = self.upper + self.cost.fixed
        smaller = [self._without(allocation, gone) for allocation in sizes]
        fitting = [allocation for allocation in smaller if self.cost.of(allocation) <= limit]
        return fitting[-1] if fitting and len(gone) <= self.most_removed else None

    def neighbours(self, parent: Allocation) -> list[Allocation]:
        """Allocations with other attentions or experts, one removed block more, less, or exchanged."""
        gone = {number for number, block in enumerate(self.blocks) if not any(parent[index] for index in block)}
        present_sizes = next(
            sizes for sizes in self.sizes if any(self._without(allocation, gone) == parent for allocation in sizes)
        )
        present = set(range(len(self.blocks))) - gone
        sets = [gone - {old} for old in gone] + [gone | {new} for new in present]
        sets += [gone - {old} | {new} for old, new in product(gone, present)]
        near = [self._widest(present_sizes, removed) for removed in sets]
        near += [self._widest(sizes, gone) for sizes in self.sizes]
        return [allocation for allocation in dict.fromkeys(near) if allocation is not None and allocation != parent]


def _removed(total: np.ndarray, change: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sums [w, d] after the removal of the first blocks in `order` [w, b], from all sums [w] and changes [w, b]."""
    steps = np.cumsum(np.take_along_axis(change, order, axis=1), axis=1)
    sums: np.ndarray = total[:, None] + np.concatenate([np.zeros((len(total), 1)), steps], axis=1)
    return sums


def equal_layers(
    space: SearchSpace, cost: CostModel, upper: int, *, runs: Callable[[Allocation], str | None], removable: bool
) -> EqualLayers:
    """All allocations with equal layers.

    Args:
        space: Modules and levels.
        cost: Cost of allocations.
        upper: Maximum cost of the modules.
        runs: Why the sizes of an allocation can't be used; None if they can. Of dense models, only the narrowest and
            the widest MLP are tried with each size of attentions.
        removable: Whether whole blocks may be removed.

    Raises:
        BudgetError: No such allocation can be used; the message has the reason.
    """
    sizes: dict[tuple[Allocation, ...], None] = {}
    reason: str | None = None
    cut = [index for index, module in enumerate(space.modules) if len(module.levels) > 1]
    mixture = any(module.levels[-1].sizes.experts for module in space.modules)
    for uniform in uniform_sizes(space):
        standing = [allocation for allocation in uniform if all(allocation[index] for index in cut)]
        # The width of shared experts may have to be a multiple of that of the others, so all are tried.
        tried = standing if mixture else [*standing[:1], *standing[-1:]]
        refusals = {allocation: runs(allocation) for allocation in tried}
        reason = next(filter(None, refusals.values()), reason)
        if any(refusals.values()):
            standing = [allocation for allocation in tried if refusals[allocation] is None]
        if standing:
            sizes[tuple(dict.fromkeys(standing))] = None
    if not sizes:
        raise BudgetError(f"--layers equal: {reason or 'no module can be cut'}")
    blocks: dict[int, list[int]] = {}
    for index, module in enumerate(space.modules):
        blocks.setdefault(module.block, []).append(index)
    cut_blocks = [block for block in blocks.values() if all(index in cut for index in block)]
    attending = [block for block in blocks.values() if any(space.modules[index].kind == "attention" for index in block)]
    if 0 < len(attending) < len(blocks) and all(block in cut_blocks for block in attending):
        cut_blocks.remove(attending[0])  # transformers' caches of hybrid models need one attention
    return EqualLayers(cost, upper, tuple(sizes), tuple(map(tuple, cut_blocks)) if removable else ())
