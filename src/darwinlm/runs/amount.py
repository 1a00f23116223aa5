"""The amount of text that fits into a run's time limit."""

from __future__ import annotations

from pathlib import Path

import torch

from darwinlm.formats.resolve import describe_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.pipeline import STEPS, steps_of
from darwinlm.planning.measured_speed import measure_speed
from darwinlm.planning.run_plan import plan_here
from darwinlm.planning.speeds import Speed
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.recipe.presets import AMOUNTS
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import STAGES, read_record, write_json
from darwinlm.runtime.output import mark
from darwinlm.runtime.time_limit import TimeLimit
from darwinlm.steps.run_sizes import RunSizes

FILE = "time_limit.json"
FIXED = 0.5
"""Share of the limit that steps may take which can't end early."""


def fitted(recipe: Recipe, folder: Path, device: torch.device, begun: float) -> tuple[Recipe, TimeLimit | None]:
    """The recipe with the largest amount of text that fits into its time limit, unless it names a preset; the limit.

    The limit counts from `begun`, on the monotonic clock. A run that is resumed keeps its amount.
    """
    if recipe.time is None or recipe.model is None:
        return recipe, None
    seconds, file = 60 * recipe.time, folder / STAGES / FILE
    limit = TimeLimit(seconds, begun, {}, frozenset(), recipe.preset)
    with parallel.agree():
        if parallel.is_main():
            source = describe_model(recipe.model)
            speed = measure_speed(RunSizes(source, recipe), device)
            record = read_record(file) if file.is_file() else {}
            kept = record.get("preset") if record.get("seconds") == seconds else None
            limit = limit_of(recipe, source, device, speed, begun, kept)
            mark(folder)
            write_json(file, {"seconds": seconds, "preset": limit.preset})
    limit = parallel.broadcast(limit)
    return load_recipe(recipe, (), {"preset": limit.preset}), limit


def limit_of(
    recipe: Recipe,
    source: Checkpoint,
    device: torch.device,
    speed: Speed,
    begun: float,
    kept: str | None = None,
    processes: int | None = None,
) -> TimeLimit:
    """The time limit of a recipe that has one, with its preset: the largest that fits, or the one that is named.

    Args:
        recipe: Recipe with a time limit.
        source: The model.
        device: Device of this machine.
        speed: Its speed.
        begun: Start of the limit.
        kept: Preset that a resumed run began with.
        processes: Number of processes; None counts those of this run.
    """
    assert recipe.time is not None, "there is a limit"
    seconds, ending = 60 * recipe.time, frozenset(step.name for step in STEPS if step.ends_early)
    names = [recipe.preset] if "preset" in recipe.model_fields_set else [*AMOUNTS]
    for name in [kept] if kept in names else names:
        sized = load_recipe(recipe, (), {"preset": name})
        plan = plan_here(steps_of(sized), RunSizes(source, sized, processes or parallel.size()), device, speed)
        planned = {row.step: plan.seconds(row)[0] for row in plan.rows}
        limit = TimeLimit(seconds, begun, planned, ending, sized.preset)
        if limit.fixed <= FIXED * seconds:
            break
    return limit
