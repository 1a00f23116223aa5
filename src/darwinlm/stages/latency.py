"""Latency: time of a module at each level on this machine, and the error of predictions for whole models."""

from __future__ import annotations

import platform

import torch

from darwinlm.families.parts import ModuleKind
from darwinlm.families.shapes import ModuleShape
from darwinlm.latency.measure import measure_table, read_table, table_costs
from darwinlm.latency.timing import ModelTimer
from darwinlm.run import Run
from darwinlm.runtime.artifact import write_json
from darwinlm.search.problem.cost import CostModel
from darwinlm.search.problem.space import SearchSpace

WORRYING = 0.05
"""Prediction error above which the user is warned."""

POINTS, RUNS = 9, 3
"""Maximum number of timed widths for one kind of module (other times are interpolated), and timed passes at each width,
whose median is used; up to three times as many if they disagree."""

TABLE = "table.json"
RATIOS = "ratios.json"


def latency_stage(
    run: Run, space: SearchSpace, shapes: dict[tuple[int, ModuleKind], ModuleShape], dtype: torch.dtype
) -> CostModel:
    """Measure the table, or reuse it; costs are nanoseconds of the recipe's workload. Raises ArtifactError."""
    budget, on_gpu = run.recipe.budget, run.device.type == "cuda"
    name = torch.cuda.get_device_name(run.device) if on_gpu else platform.processor() or platform.machine()
    key = {
        "config": run.checkpoint.plain_config(),
        "units": run.recipe.units.model_dump(),
        "request": [budget.prefill_tokens, budget.decode_tokens, budget.batch],
        "points": POINTS,
        "runs": RUNS,
        "dtype": str(dtype),
        "machine": [name, run.device.type, torch.get_num_threads(), torch.__version__],
    }
    if on_gpu:
        key["decoding"] = "CUDA graph"
    with run.stage("latency", key, "latency table") as (stage, work):
        if work:
            timer = ModelTimer(run.checkpoint, shapes, budget, dtype=dtype, device=run.device, runs=RUNS)
            measured = measure_table(
                space,
                timer,
                points=POINTS,
                record=stage.folder / RATIOS,
                progress=run.reporter.advance,
            )
            write_json(stage.folder / TABLE, measured)
            if on_gpu and not timer.graphs:
                run.reporter.say("latency table: decoding can't be recorded as a CUDA graph and was timed without one")
        table = read_table(stage.folder / TABLE)
        if work:
            run.reporter.say(f"latency table: whole models are predicted to within {table.worst_error:.1%}")
            if table.worst_error > WORRYING:
                run.reporter.say(
                    f"the machine was busy or its speed changed: close other programs, delete {stage.folder} and "
                    "repeat the command"
                )
    return table_costs(table, space)
