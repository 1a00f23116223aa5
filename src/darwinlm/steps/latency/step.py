"""Latency: time of a module at each level on this machine, and the error of predictions for whole models."""

from __future__ import annotations

import platform
from typing import Any

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.budget.problem import space_of
from darwinlm.steps.latency.latency_table import LatencyTable
from darwinlm.steps.latency.measure import check_fastest, fastest, measure_table, table_costs
from darwinlm.steps.latency.timing import ModelTimer

WORRYING = 0.05
"""Prediction error above which the user is warned."""

POINTS, RUNS = 9, 3
"""Maximum number of timed widths for one kind of module (other times are interpolated), and timed passes at each width,
whose median is used; up to three times as many if they disagree."""

TABLE = "table.json"
RATIOS = "ratios.json"


def _machine(task: Task) -> dict[str, Any]:
    """What times depend on, besides the model and the request."""
    device = task.context.device
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    return {
        "dtype": str(task.context.dtype),
        "machine": [name, device.type, torch.get_num_threads(), torch.__version__],
        "timed": [POINTS, RUNS, "CUDA graph" if on_gpu else "eager"],
    }


def _measure(task: Task, dense: Checkpoint) -> None:
    """Raises BudgetError if even a model without the modules that may be cut is too slow."""
    context, recipe = task.context, task.recipe
    shapes, space = module_shapes(dense), space_of(recipe, dense, module_shapes(dense))
    timer = ModelTimer(
        dense,
        {(shape.block, shape.kind): shape for shape in shapes},
        recipe.budget,
        dtype=context.dtype,
        device=context.device,
        runs=RUNS,
    )
    check_fastest(recipe.budget, *fastest(space, timer))
    measured = measure_table(
        space, timer, points=POINTS, record=task.folder / RATIOS, progress=context.reporter.advance
    )
    write_json(task.folder / TABLE, measured)
    table = read_as(task.folder / TABLE, LatencyTable)
    context.reporter.say(f"latency table: whole models are predicted to within {table.worst_error:.1%}")
    if table.worst_error > WORRYING:
        context.reporter.say(
            f"the machine was busy or its speed changed: close other programs, delete {task.folder} and repeat the "
            "command"
        )
    if context.device.type == "cuda" and not timer.graphs:
        context.reporter.say("latency table: decoding can't be recorded as a CUDA graph and was timed without one")


LATENCY = Stage(
    "latency",
    _measure,
    lambda task, dense: table_costs(
        read_as(task.folder / TABLE, LatencyTable), space_of(task.recipe, dense, module_shapes(dense))
    ),
    version=3,
    title="latency table",
    writes="time of a module at every level",
    settings=("units", "budget.prefill_tokens", "budget.decode_tokens"),
    key=_machine,
)
"""Costs in nanoseconds of the recipe's request."""
