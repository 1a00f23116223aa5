"""Latency: what one module takes at each level on this machine, and how well that predicts whole models."""

from __future__ import annotations

import platform
import random
import statistics
from typing import Any

import torch

from darwinlm.artifact import damaged, read_json, write_json
from darwinlm.database.levels import Level
from darwinlm.families.family import KINDS, ModuleKind
from darwinlm.families.shapes import ModuleShape
from darwinlm.latency.table import ABSENT, LatencyTable, Size, lines_of, measured_lines, refine, size_of
from darwinlm.latency.timing import Choice, ModelTimer, Workload
from darwinlm.run import Run
from darwinlm.search.problem.cost import CostModel, time_costs
from darwinlm.search.problem.space import Allocation, SearchSpace

CHECKS = 3
"""Random allocations that predictions are checked on."""

WORRYING = 0.05
"""Error of a prediction above which the user is told."""

TABLE = "table.json"
RATIOS = "ratios.json"
Shapes = dict[tuple[int, ModuleKind], ModuleShape]


def latency_stage(run: Run, space: SearchSpace, shapes: Shapes, dtype: torch.dtype) -> CostModel:
    """Measure the table, or reuse it; costs are nanoseconds of the request that the recipe describes."""
    budget = run.recipe.budget
    key = {
        "config": run.checkpoint.plain_config(),
        "units": run.recipe.units.model_dump(),
        "request": [budget.prefill_tokens, budget.decode_tokens, budget.batch],
        "points": budget.latency_points,
        "runs": budget.latency_runs,
        "dtype": str(dtype),
        "machine": _machine(run.device),
    }
    with run.stage("latency", key, "latency table") as (stage, work):
        if work:
            timer = _timer(run, shapes, dtype)
            write_json(stage.folder / TABLE, _measure(run, space, timer, stage.folder / RATIOS))
        found = read_json(stage.folder / TABLE)
        try:
            table = _table(found)
            worst = float(found["worst_error"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(stage.folder / TABLE, f"it isn't a latency table: {error}") from error
        if work:
            run.reporter.say(f"latency table: whole models are predicted to within {worst:.1%}")
            if worst > WORRYING:
                run.reporter.say(
                    "the machine was busy or its speed changed: close other programs, and raise latency_runs"
                )
    return costs_from(table, space)


def costs_from(table: LatencyTable, space: SearchSpace) -> CostModel:
    """Nanoseconds of every level."""
    times = {
        (module.block, module.kind): [table.seconds(module.kind, size_of(level)) for level in module.levels]
        for module in space.modules
    }
    return time_costs(space, times, table.fixed)


def measured_ratio(run: Run, space: SearchSpace, shapes: Shapes, dtype: torch.dtype, allocation: Allocation) -> float:
    """Time of an allocation over the dense model's, measured now."""
    return _timer(run, shapes, dtype).compare(_choice(space, space.dense), _choice(space, allocation))[0]


def _timer(run: Run, shapes: Shapes, dtype: torch.dtype) -> ModelTimer:
    budget = run.recipe.budget
    request = Workload(budget.prefill_tokens, budget.decode_tokens, budget.batch)
    return ModelTimer(run.checkpoint, shapes, request, dtype=dtype, device=run.device, runs=budget.latency_runs)


def _machine(device: torch.device) -> list[Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return [name, device.type, torch.get_num_threads(), torch.__version__]


def _choice(space: SearchSpace, allocation: Allocation) -> dict[tuple[int, ModuleKind], Level]:
    levels = space.levels(allocation)
    return {(module.block, module.kind): level for module, level in zip(space.modules, levels, strict=True)}


def _measure(run: Run, space: SearchSpace, timer: ModelTimer, record: Any) -> dict[str, Any]:
    """Time the models that the table needs; ratios that an interrupted run has measured are kept."""
    dense = _choice(space, space.dense)
    known: dict[str, list[float]] = read_json(record) if record.exists() else {}
    total = 2 * run.recipe.budget.latency_points + CHECKS

    def ratio(name: str, choice: Choice) -> float:
        if name not in known:
            known[name] = list(timer.compare(dense, choice))
            write_json(record, known)
        run.reporter.advance(len(known), max(total, len(known)))
        return known[name][0]

    ratios: dict[str, dict[Size, float]] = {}
    for kind in KINDS:
        modules = [module for module in space.modules if module.kind == kind]
        if modules:
            ratios[kind] = _ratios_of(kind, space, ratio, run.recipe.budget.latency_points)
    rng = random.Random(0)  # noqa: S311
    checks = [tuple(rng.randrange(len(module.levels)) for module in space.modules) for _ in range(CHECKS)]
    measured = [ratio(f"check:{number}", _choice(space, each)) for number, each in enumerate(checks)]
    seconds = statistics.median(dense_seconds for _, dense_seconds in known.values())
    counts = {kind: sum(module.kind == kind for module in space.modules) for kind in ratios}
    lines = {kind: lines_of(found, counts[kind], seconds) for kind, found in ratios.items()}
    table = LatencyTable(lines, seconds, 0.0)
    of_modules = sum(table.seconds(module.kind, size_of(module.levels[-1])) for module in space.modules)
    table = LatencyTable(lines, seconds, max(0.0, seconds - of_modules))
    cost = costs_from(table, space)
    rows = [
        {
            "predicted": cost.of(each) / 1e9,
            "measured": found * seconds,
            "error": cost.of(each) / 1e9 / found / seconds - 1,
        }
        for each, found in zip(checks, measured, strict=True)
    ]
    return {
        "seconds": {kind: {str(heads): line for heads, line in of_kind.items()} for kind, of_kind in lines.items()},
        "dense": seconds,
        "fixed": table.fixed,
        "models_timed": len(known),
        "checks": rows,
        "worst_error": max(abs(row["error"]) for row in rows),
    }


def _ratios_of(kind: ModuleKind, space: SearchSpace, ratio: Any, points: int) -> dict[Size, float]:
    """Whole-model times with all modules of a kind at one size, over the dense model's."""
    levels = {size_of(level): level for module in space.modules if module.kind == kind for level in module.levels}
    others = {place: level for place, level in _choice(space, space.dense).items() if place[1] != kind}
    places = [(module.block, module.kind) for module in space.modules if module.kind == kind]
    tops = {size_of(module.levels[-1]) for module in space.modules if module.kind == kind}
    known = {next(iter(tops)): 1.0} if len(tops) == 1 else {}

    def measure(size: Size) -> float:
        found: float = ratio(f"{kind}:{':'.join(map(str, size))}", {**others, **dict.fromkeys(places, levels[size])})
        return found

    gone = ratio(f"{kind}:gone", others)
    return {**refine(measured_lines(list(levels)), measure, points=points, known=known), ABSENT: gone}


def _table(found: dict[str, Any]) -> LatencyTable:
    lines = {
        kind: {int(heads): tuple((int(w), float(t)) for w, t in line) for heads, line in of_kind.items()}
        for kind, of_kind in found["seconds"].items()
    }
    return LatencyTable(lines, float(found["dense"]), float(found["fixed"]))
