"""Measure a latency table, and the error of its predictions for whole models."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from pathlib import Path

from darwinlm.model.families.parts import KINDS, ModuleKind
from darwinlm.model.layer_sizes import LayerSizes, ModuleSizes, Place
from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import SearchSpace
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.kinds import Latency, Speedup
from darwinlm.steps.latency.latency_table import (
    Check,
    LatencyTable,
    Ratios,
    line_of,
    lines_of,
    measured_lines,
    refine,
    time_of,
)
from darwinlm.steps.latency.timing import ModelTimer, Timing

STEPS = 1_000_000
"""Resolution of times as parts of the whole; the knapsack's solver is exact for integers of this size."""

CHECKS = 3
"""Number of random allocations for checking predictions."""


def fastest(space: SearchSpace, timer: ModelTimer, tokens: int) -> Timing:
    """Times of a model without all modules that may be cut, and with so many tokens."""
    dense = space.sizes(space.dense)
    cut = {module.place for module in space.modules if len(module.levels) > 1}
    return timer.compare(dense, {place: sizes for place, sizes in dense.items() if place not in cut}, tokens)


def check_fastest(budget: BudgetSettings, timing: Timing) -> None:
    """Refuse a bound in time that even `fastest` misses. Raises BudgetError."""
    ratio, seconds = timing
    bound = budget.bound
    if isinstance(bound, Speedup) and bound.value * ratio > 1:
        request, fastest_speed = f"speedup: {bound.value:g}x is", f"{1 / ratio:.2f}x as fast"
    elif isinstance(bound, Latency) and ratio * seconds > bound.value:
        request = f"latency: {1e3 * bound.value:.3g} ms is"
        fastest_speed = f"as fast as {1e3 * ratio * seconds:.3g} ms"
    else:
        return
    raise BudgetError(
        f"budget.{request} out of reach: here the model without any attention and MLP is only {fastest_speed}, because "
        "embedding and output head stay; choose a bound well below that"
    )


def measure_table(
    space: SearchSpace,
    timer: ModelTimer,
    *,
    points: int,
    record: Path,
    tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyTable:
    """Time the models for a table.

    `points` is the maximum number of timed widths for one kind of module. The file `record` keeps the ratios for a run
    that resumes. The checks of the table compare it with a few random allocations. If the vocabulary is cut, `tokens`
    is the smallest number of tokens that may remain; with that number, the dense model is timed too.
    """
    dense = space.sizes(space.dense)
    known = read_as(record, dict[str, Timing]) if record.exists() else {}
    total = 2 * points + CHECKS

    def ratio(name: str, modules: ModuleSizes, kept_tokens: int = timer.rows) -> float:
        if name not in known:
            known[name] = timer.compare(dense, modules, kept_tokens)
            write_json(record, known)
        progress(len(known), max(total, len(known)))
        return known[name].ratio

    ratios: dict[ModuleKind, Ratios] = {}
    cut = [module for module in space.modules if len(module.levels) > 1]
    for kind in KINDS:
        if any(module.kind == kind for module in cut):
            ratios[kind] = _ratios_of(kind, space, ratio, points)
    rng = random.Random(0)  # noqa: S311
    checks = [tuple(rng.randrange(len(module.levels)) for module in space.modules) for _ in range(CHECKS)]
    measured = [ratio(f"check:{number}", space.sizes(allocation)) for number, allocation in enumerate(checks)]
    seconds = statistics.median(timing.seconds for timing in known.values())
    lines = {kind: lines_of(of_kind, seconds) for kind, of_kind in ratios.items()}
    of_modules = sum(time_of(lines, module.levels[-1].sizes) for module in cut)
    fixed, head = max(0.0, seconds - of_modules), 0.0
    if tokens < timer.rows:
        per_token = (1 - ratio(f"tokens:{tokens}", dense, tokens)) * seconds / (timer.rows - tokens)
        head = min(max(0.0, per_token * timer.rows), fixed)
    table = LatencyTable(seconds=lines, dense=seconds, fixed=fixed, head=head, models_timed=len(known))
    cost = table_costs(table, space)
    predicted = [cost.of(allocation) / 1e9 for allocation in checks]
    comparisons = [
        Check(predicted=time, measured=ratio_of * seconds, error=time / ratio_of / seconds - 1)
        for time, ratio_of in zip(predicted, measured, strict=True)
    ]
    worst = max(abs(check.error) for check in comparisons)
    return table.model_copy(update={"checks": tuple(comparisons), "worst_error": worst})


def table_costs(table: LatencyTable, space: SearchSpace) -> CostModel:
    """Costs in nanoseconds of every level."""
    rows = [
        [time_of(table.seconds, level.sizes) for level in module.levels] if len(module.levels) > 1 else [0.0]
        for module in space.modules
    ]
    quantum = max(1, round(1e9 * (table.fixed + sum(row[-1] for row in rows)) / STEPS))
    costs = tuple(tuple(quantum * max(0, round(1e9 * time / quantum)) for time in row) for row in rows)
    return CostModel("nanoseconds", costs, round(1e9 * table.fixed), round(1e9 * table.head))


def _ratios_of(kind: ModuleKind, space: SearchSpace, ratio: Callable[[str, ModuleSizes], float], points: int) -> Ratios:
    """Times of whole models with all modules of a kind at one size."""
    modules = [module for module in space.modules if module.kind == kind and len(module.levels) > 1]
    plain = [module.place for module in modules if not module.levels[-1].sizes.experts]
    mixtures = [module.place for module in modules if module.levels[-1].sizes.experts]
    remaining = {place: sizes for place, sizes in space.sizes(space.dense).items() if place not in (*plain, *mixtures)}
    tops = {module.levels[-1].sizes for module in modules}
    known = {next(iter(tops)): 1.0} if len(tops) == 1 else {}

    def timed_together(sizes: LayerSizes) -> list[Place]:
        return mixtures if sizes.experts else plain

    def measure(sizes: LayerSizes) -> float:
        return ratio(record_name(sizes), {**remaining, **dict.fromkeys(timed_together(sizes), sizes)})

    gone = ratio(f"{kind}:gone", remaining)
    possible = {level.sizes for module in modules for level in module.levels if level.sizes.width}
    at = refine(measured_lines(possible), measure, points=points, known=known)
    return Ratios(at, gone, {line_of(sizes): len(timed_together(sizes)) for sizes in possible})


def record_name(sizes: LayerSizes) -> str:
    """Name of a timed size in the record."""
    numbers = sizes.groups, line_of(sizes), sizes.head_dim, sizes.width
    return ":".join([sizes.kind, *map(str, numbers)])
