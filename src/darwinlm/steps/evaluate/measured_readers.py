"""Models of a run that read texts one by one, measured on the same held-out texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.model.walk import items
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.steps.evaluate.item_quality import measure_items
from darwinlm.steps.evaluate.metric import ModelSize, TimedRounds, size_metrics, speed_metrics
from darwinlm.steps.evaluate.model_figures import Measured, ModelFigures
from darwinlm.steps.evaluate.speed import measure_reading_speed
from darwinlm.steps.source.whole_model import load_whole, why_not_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.objective.item_objective import ItemObjective
    from darwinlm.runtime.step import Task
    from darwinlm.steps.evaluate.measured_models import Models
    from darwinlm.steps.text.sequences import TokenSequences


def measure_readers(
    task: Task, dense: Checkpoint, models: Models, dtype: torch.dtype, evaluation: TokenSequences
) -> Measured:
    """Measure models on the same texts, block by block; processes share them.

    Models compute in the run's element type; their sizes in bytes are those in `dtype`. Whole models are timed.
    """
    context, tokens = task.context, evaluation.tokens
    with parallel.agree():
        decoders = {name: model.read(tokens) for name, model in models.models.items()}
    for decoder in decoders.values():
        decoder.reserve(0, len(decoders))
    quality = measure_items(
        decoders,
        cast("ItemObjective", objective_of(dense)),
        tokens,
        evaluation.items,
        batch_tokens=context.batch_tokens,
        memory=HiddenMemory(task.folder),
        progress=context.reporter.advance,
    )
    sizes = {
        name: ModelSize(int(decoder.params), block_parameters(decoder.model, dense.family.layers), dtype.itemsize)
        for name, decoder in decoders.items()
    }
    del decoders
    speeds = _speeds(task, models.whole, sum(sizes[name].params for name in models.whole), tokens[:1])
    untimed = dict.fromkeys(metric.name for metric in speed_metrics())
    return {
        name: ModelFigures(
            metrics={
                **{metric.name: metric.of(sizes[name]) for metric in size_metrics()},
                **quality[name].values,
                **speeds.get(name, untimed),
            },
            reading=quality[name].reading,
        )
        for name in models.models
    }


def _speeds(
    task: Task, models: Mapping[str, Checkpoint], params: int, prompt: Tensor
) -> dict[str, dict[str, float | None]]:
    """Speeds of whole models by metric; the first process measures while the others wait."""
    speeds: dict[str, dict[str, float | None]] = {}
    if reason := why_not_whole(task, params):
        task.context.reporter.say(f"evaluate: no speeds: {reason}")
    elif parallel.is_main():
        loaded = {name: load_whole(task, checkpoint) for name, checkpoint in models.items()}
        rounds: dict[str, TimedRounds] = measure_reading_speed(loaded, items.ids(prompt))
        speeds = {name: {metric.name: metric.of(rounds[name]) for metric in speed_metrics()} for name in loaded}
    return parallel.broadcast(speeds)
