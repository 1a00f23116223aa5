"""Measure a latency table, and the error of its predictions for whole models."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from darwinlm.model.families.parts import KINDS, ModuleKind
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import SearchSpace
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.latency.latency_table import ABSENT, LatencyTable, Size, lines_of, measured_lines, refine, size_of
from darwinlm.steps.latency.timing import ModelTimer
from darwinlm.steps.stitch.stitch import Chosen, chosen_levels

STEPS = 1_000_000
"""Resolution of times as parts of the whole; the knapsack's solver is exact for integers of this size."""

CHECKS = 3
"""Number of random allocations for checking predictions."""


def fastest(space: SearchSpace, timer: ModelTimer) -> tuple[float, float]:
    """Time of a model without all modules that may be cut, relative to the dense one's, and that one's in seconds."""
    dense = chosen_levels(space.modules, space.dense)
    cut = {(module.block, module.kind) for module in space.modules if len(module.levels) > 1}
    return timer.compare(dense, {place: level for place, level in dense.items() if place not in cut})


def check_fastest(budget: BudgetSettings, ratio: float, seconds: float) -> None:
    """Refuse a bound in time that even `fastest` misses. Raises BudgetError."""
    if budget.speedup is not None and budget.speedup * ratio > 1:
        asked, most = f"speedup: {budget.speedup:g}x is", f"{1 / ratio:.2f}x as fast"
    elif budget.latency is not None and ratio * seconds > budget.latency:
        asked, most = f"latency: {1e3 * budget.latency:.3g} ms is", f"as fast as {1e3 * ratio * seconds:.3g} ms"
    else:
        return
    raise BudgetError(
        f"budget.{asked} out of reach: here the model without any attention and MLP is only {most}, because embedding "
        "and output head stay; choose a bound well below that"
    )


def measure_table(
    space: SearchSpace,
    timer: ModelTimer,
    *,
    points: int,
    record: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time the models for a table.

    `points` is the maximum number of timed widths for one kind of module. The file `record` keeps the ratios for a run
    that resumes.

    Returns:
        A `LatencyTable`, with predicted and measured times of a few random allocations.
    """
    dense = chosen_levels(space.modules, space.dense)
    known = read_as(record, dict[str, tuple[float, float]]) if record.exists() else {}
    total = 2 * points + CHECKS

    def ratio(name: str, choice: Chosen) -> float:
        if name not in known:
            known[name] = timer.compare(dense, choice)
            write_json(record, known)
        progress(len(known), max(total, len(known)))
        return known[name][0]

    ratios: dict[str, tuple[dict[Size, float], dict[int, int]]] = {}
    cut = [module for module in space.modules if len(module.levels) > 1]
    for kind in KINDS:
        if any(module.kind == kind for module in cut):
            ratios[kind] = _ratios_of(kind, space, ratio, points)
    rng = random.Random(0)  # noqa: S311
    checks = [tuple(rng.randrange(len(module.levels)) for module in space.modules) for _ in range(CHECKS)]
    measured = [ratio(f"check:{number}", chosen_levels(space.modules, each)) for number, each in enumerate(checks)]
    seconds = statistics.median(dense_seconds for _, dense_seconds in known.values())
    lines = {kind: lines_of(times, counts, seconds) for kind, (times, counts) in ratios.items()}
    whole = LatencyTable(seconds=lines, fixed=0.0)
    of_modules = sum(whole.of(module.kind, size_of(module.levels[-1])) for module in cut)
    table = whole.model_copy(update={"fixed": max(0.0, seconds - of_modules)})
    cost = table_costs(table, space)
    predicted = [cost.of(each) / 1e9 for each in checks]
    comparisons = [
        {"predicted": time, "measured": ratio_of * seconds, "error": time / ratio_of / seconds - 1}
        for time, ratio_of in zip(predicted, measured, strict=True)
    ]
    return {
        "seconds": lines,
        "dense": seconds,
        "fixed": table.fixed,
        "models_timed": len(known),
        "checks": comparisons,
        "worst_error": max(abs(row["error"]) for row in comparisons),
    }


def table_costs(table: LatencyTable, space: SearchSpace) -> CostModel:
    """Costs in nanoseconds of every level."""
    rows = [
        [table.of(module.kind, size_of(level)) for level in module.levels] if len(module.levels) > 1 else [0.0]
        for module in space.modules
    ]
    quantum = max(1, round(1e9 * (table.fixed + sum(row[-1] for row in rows)) / STEPS))
    costs = tuple(tuple(quantum * max(0, round(1e9 * time / quantum)) for time in row) for row in rows)
    return CostModel("nanoseconds", costs, round(1e9 * table.fixed))


def _ratios_of(
    kind: ModuleKind, space: SearchSpace, ratio: Callable[[str, Chosen], float], points: int
) -> tuple[dict[Size, float], dict[int, int]]:
    """Times of whole models with all modules of a kind at one size, relative to the dense model.

    MLPs and mixtures are timed apart, so the second result is the number of modules that were timed together, by query
    heads per group, or by experts.
    """
    modules = [module for module in space.modules if module.kind == kind and len(module.levels) > 1]
    levels = {size_of(level): level for module in modules for level in module.levels}
    alike: dict[bool, list[tuple[int, ModuleKind]]] = {False: [], True: []}
    for module in modules:
        alike[bool(module.levels[-1].experts)].append((module.block, kind))
    dense = chosen_levels(space.modules, space.dense)
    others = {place: level for place, level in dense.items() if place not in (*alike[False], *alike[True])}
    tops = {size_of(module.levels[-1]) for module in modules}
    known = {next(iter(tops)): 1.0} if len(tops) == 1 else {}

    def measure(size: Size) -> float:
        places = alike[bool(levels[size].experts)]
        return ratio(f"{kind}:{':'.join(map(str, size))}", {**others, **dict.fromkeys(places, levels[size])})

    gone = ratio(f"{kind}:gone", others)
    ratios = refine(measured_lines(list(levels)), measure, points=points, known=known)
    counts = {size[1]: len(alike[bool(level.experts)]) for size, level in levels.items() if level.width}
    return {**ratios, ABSENT: gone}, counts
