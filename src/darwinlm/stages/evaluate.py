"""Evaluate: dense, uniform, stitched and final model on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from darwinlm.data import TokenBlocks
from darwinlm.evaluation.looking_back import all_copying, longest_sequence, measure_copying, number_of_lists
from darwinlm.evaluation.quality import measure_quality
from darwinlm.evaluation.speed import continue_greedily, measure_speed, prompts_for
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import damaged, digest_of, read_json, write_json
from darwinlm.runtime.errors import first_line
from darwinlm.runtime.figures import LookingBackFigures, ModelFigures, ModelKey
from darwinlm.runtime.memory import free_bytes
from darwinlm.stages.database import PruningDatabase
from darwinlm.stages.export import Exported
from darwinlm.stages.recover import Recovered
from darwinlm.stages.refit import Refitted
from darwinlm.stages.search import SearchResult
from darwinlm.stages.stitch import Stitched
from darwinlm.surgery.stitch import as_dtype, block_parameters
from darwinlm.surgery.stitch import stitch as stitched

FIGURES = "models.json"
QUALITY, SPEED, COPYING = 0.45, 0.65, 0.85
"""Shares of a limited time after which each measurement stops."""

Measured = dict[ModelKey, ModelFigures]
Loaders = dict[ModelKey, Callable[[], Any]]


@dataclass(frozen=True)
class Models:
    """The models to measure, the dense one first, with the digests that identify them."""

    loaders: Loaders
    digest: str

    @classmethod
    def of(cls, **models: tuple[Callable[[], Any], Any]) -> Models:
        """From pairs of a function that loads a model and what identifies it; None leaves a model out."""
        loaders: Any = {name: model[0] for name, model in models.items() if model is not None}
        return cls(loaders, digest_of({name: model[1] for name, model in models.items() if model is not None}))


def _models(
    task: Task,
    teacher: Checkpoint,
    database: PruningDatabase,
    search: SearchResult,
    stitch: Stitched,
    refit: Refitted | None,
    recover: Recovered | None,
    export: Exported,
) -> Models:
    context = task.context

    def uniform() -> Any:
        """The best uniform model at the same budget."""
        model = as_dtype(stitched(database.reader, search.uniform), context.dtype)
        database.reader.release()
        return model

    def loaded(checkpoint: Checkpoint) -> tuple[Callable[[], Any], str]:
        return partial(checkpoint.load, context.dtype, context.device), checkpoint.digest

    models: dict[str, Any] = {
        "dense": loaded(teacher),
        "uniform": (uniform, [database.digest, search.uniform]),
        "stitched": loaded(stitch.checkpoint),
    }
    if refit is not None and recover is not None:
        models["refit"] = (lambda: as_dtype(refit.model(), context.dtype)), refit.record
    elif refit is not None:
        models["refit"] = loaded(export.checkpoint)
    if recover is not None:
        models["recovered"] = loaded(export.checkpoint)
    return Models.of(**models)


MODELS = Stage("models", _models)


def _measure(task: Task, dense: Checkpoint, models: Models, export: Exported, evaluation: TokenBlocks) -> None:
    measured = measure_models(task, dense, models.loaders, evaluation, export.dtype)
    parallel.in_main(save_figures, task.folder / FIGURES, measured)


EVALUATE: Stage[Measured] = Stage(
    "evaluate",
    lambda task: read_figures(task.folder / FIGURES),
    work=_measure,
    title="evaluate",
    writes="figures of every model",
    settings=("evaluation",),
    arithmetic=True,
    together=True,
)
"""Figures of each model, on the same held-out text."""


def save_figures(path: Path, measured: Measured) -> None:
    """Write figures of models. Raises StorageError."""
    write_json(path, {key: figures.model_dump(mode="json") for key, figures in measured.items()})


def read_figures(path: Path) -> Measured:
    """Read figures of models. Raises ArtifactError."""
    try:
        return {key: ModelFigures.model_validate(tree) for key, tree in read_json(path).items()}
    except (AttributeError, ValidationError) as error:
        raise damaged(path, f"it doesn't hold figures of models: {first_line(error)}") from error


def room_for_models(device: torch.device) -> float | None:
    """Bytes of a GPU for models: half of its free memory, the least of all processes; None on a CPU."""
    return min(parallel.gather(free_bytes(device))) / 2 if device.type == "cuda" else None


def takes_another(sizes: Sequence[int], room: float | None) -> bool:
    """Whether another smaller model fits beside the dense one and the smaller ones after it; one always does."""
    return len(sizes) < 2 or room is None or sum(sizes) + max(sizes[1:]) <= room


def measure_models(task: Task, dense: Checkpoint, loaders: Loaders, text: TokenBlocks, dtype: torch.dtype) -> Measured:
    """Measure models on the same text, as many at once as fit beside the dense one; processes share the text.

    Models are loaded in the run's element type; their sizes in bytes are those in `dtype`.
    """
    measured: Measured = {}
    last = list(loaders)[-1]
    waiting, room = [name for name in loaders if name != "dense"], room_for_models(task.context.device)
    models: dict[ModelKey, Any] = {}
    while waiting:
        models = {name: model for name, model in models.items() if name == "dense"}
        with parallel.agree():
            if not models:
                models["dense"] = loaders["dense"]()
            while waiting and takes_another([_bytes(model) for model in models.values()], room):
                name = waiting.pop(0)
                models[name] = loaders[name]().to(task.context.device)
        measured = {**_measure_together(task, dense, models, text, dtype, shown=("dense", last)), **measured}
    return {name: measured[name] for name in loaders}


def _bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _late(task: Task) -> Callable[[float], Callable[[], bool]]:
    """For a share of the time until the evaluation must end: whether this share has passed."""
    begun, ends = time.monotonic(), None if task.pace is None else task.pace.ends()
    ends = math.inf if ends is None else ends
    return lambda share: lambda: time.monotonic() - begun > share * (ends - begun)


def _measure_together(
    task: Task,
    dense: Checkpoint,
    models: dict[ModelKey, Any],
    text: TokenBlocks,
    dtype: torch.dtype,
    *,
    shown: tuple[ModelKey, ...],
) -> Measured:
    """Measure models at once; those that are `shown` also write."""
    context, tokens = task.context, text.tokens
    named: dict[str, Any] = {str(name): model for name, model in models.items()}
    late = _late(task)
    quality = measure_quality(
        models["dense"],
        named,
        tokens,
        batch_tokens=context.batch_tokens,
        progress=context.reporter.advance,
        late=late(QUALITY),
    )
    # The first process alone times the models.
    speed = parallel.broadcast(measure_speed(named, tokens[:1], late=late(SPEED)) if parallel.is_main() else {})
    tokenizer = dense.tokenizer()
    sequences, remarks = all_copying(
        tokenizer, tokens, longest_sequence(models["dense"].config), lists=number_of_lists(tokens.numel())
    )
    copied = measure_copying(named, sequences, batch_tokens=context.batch_tokens, late=late(COPYING))
    if skipped := [each.name for each in sequences[len(copied["dense"]) :]]:
        remarks.append(f"copying was not measured for lack of time: {'; '.join(skipped)}")
    prompts = prompts_for(tokenizer, task.recipe.evaluation.prompts) if parallel.is_main() else ()
    prompts = prompts[: 1 if late(COPYING)() else None]
    measured: Measured = {}
    for name, model in models.items():
        params = sum(parameter.numel() for parameter in model.parameters())
        measured[name] = ModelFigures(
            params=params,
            block_params=block_parameters(model, dense.family.layers),
            bytes=params * dtype.itemsize,
            perplexity=quality[name].perplexity,
            kl=quality[name].kl,
            tokens=quality[name].tokens,
            looking_back=LookingBackFigures(
                kl_seen=quality[name].kl_seen,
                kl_new=quality[name].kl_new,
                seen=quality[name].seen,
                kl_by_position=quality[name].kl_by_position,
                copying=tuple(copied[name]),
                remarks=tuple(remarks),
            ),
            tokens_per_second=speed[name].prompt,
            decode_tokens_per_second=speed[name].decode,
            speed_spread=speed[name].spread,
            continuations=tuple(continue_greedily(model, tokenizer, prompts if name in shown else ())),
        )
    return measured
