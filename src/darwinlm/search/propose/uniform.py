"""Uniform allocations: one level for all attentions, one for all MLPs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from darwinlm.database.levels import ModuleLevels
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation, SearchSpace


def uniform_allocations(problem: Problem) -> list[Allocation]:
    """Uniform allocations: one level for all attention modules, one for all MLPs, as large as the budget allows.

    For each attention level, and each number of experts of a mixture, the widest MLP level within the budget is chosen.
    They respect the budget's upper bound, but not always the lower one. Raises BudgetError if no uniform allocation
    fits.
    """
    cost, limit = problem.cost, problem.budget.limit
    fitting = ([each for each in sizes if cost.of(each) <= limit] for sizes in uniform_sizes(problem.space))
    uniform = list(dict.fromkeys(sizes[-1] for sizes in fitting if sizes))
    if not uniform:
        raise BudgetError(f"no uniform model has at most {cost.words(limit)}")
    return uniform


def uniform_sizes(space: SearchSpace) -> Iterator[list[Allocation]]:
    """For each attention level and each number of experts the uniform allocations by ascending MLP level.

    If modules differ in size (in a pruned model), levels correspond by the share of the module that they keep.
    """
    cut = [(index, module) for index, module in enumerate(space.modules) if len(module.levels) > 1]
    heads = {index: range(len(module.levels)) for index, module in cut if module.kind == "attention"}
    mlp = {index: module for index, module in cut if module.kind == "mlp"}
    # Shares of experts that mixtures may keep, ascending; only 1 if there is no mixture.
    levels = ((level, module.levels[-1]) for module in mlp.values() for level in module.levels)
    parts = sorted({level.experts / full.experts for level, full in levels if level.experts}) or [1.0]
    for share, part in product(_shares(heads.values()), parts):
        widths = {index: _of_experts(module, part) for index, module in mlp.items()}
        sizes = []
        for width in _shares(widths.values()):
            candidate = list(space.dense)
            for index, places in heads.items():
                candidate[index] = _place_at(places, share)
            for index, of_module in widths.items():
                candidate[index] = _place_at(of_module, width)
            sizes.append(tuple(candidate))
        yield sizes


def _of_experts(module: ModuleLevels, part: float) -> list[int]:
    """Level indices of a module, ascending; for a mixture only those with this share of its experts, and 0."""
    full = module.levels[-1].experts
    counts = sorted({level.experts for level in module.levels if level.experts})
    count = min(counts, key=lambda each: (abs(each - part * full), -each), default=0)
    return [place for place, level in enumerate(module.levels) if level.experts in (0, count)]


def _shares(modules: Iterable[Sequence[int]]) -> list[float]:
    """Distinct relative positions in the lists of level indices, ascending; only 0 if there are none."""
    return sorted({at / (len(places) - 1) for places in modules for at in range(len(places))}) or [0.0]


def _place_at(places: Sequence[int], share: float) -> int:
    return places[int(share * (len(places) - 1) + 1e-9)]
