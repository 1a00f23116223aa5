"""Evaluate: dense, uniform, stitched and final model on held-out text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from darwinlm.evaluation.looking_back import all_copying, longest_sequence, measure_copying, number_of_lists
from darwinlm.evaluation.quality import measure_quality
from darwinlm.evaluation.speed import continue_greedily, measure_speed
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import damaged, read_json, write_json
from darwinlm.runtime.errors import first_line
from darwinlm.runtime.figures import LookingBackFigures, ModelFigures, ModelKey
from darwinlm.runtime.memory import free_bytes
from darwinlm.stages.text import Texts
from darwinlm.surgery.stitch import as_dtype, block_parameters, stitch

if TYPE_CHECKING:
    from darwinlm.stages.results import StageResults

FIGURES = "models.json"
QUALITY, SPEED, COPYING = 0.45, 0.65, 0.85
"""Shares of a limited time after which each measurement stops."""

Measured = dict[ModelKey, ModelFigures]
Loaders = dict[ModelKey, Callable[[], Any]]


def evaluate_stage(run: Run, results: StageResults) -> Measured:
    """Figures of each model."""
    exported, stitched, refitted = results.export, results.stitch, results.refit
    key = {
        "model": run.checkpoint.digest,
        "exported": exported.digest,
        "uniform": results.search.uniform,
        "stitched": stitched.stage.digest,
        "refit": refitted.stage.digest if refitted is not None else None,
        "recover": results.recover is not None,
        "teacher": run.teacher.digest,
        "evaluation_text": results.text["evaluation"].digest,
        "evaluation": run.recipe.evaluation.model_dump(),
        "dtype": str(exported.dtype),
        "arithmetic": run.arithmetic,
    }
    with run.stage("evaluate", key, "evaluate", shared=True) as (stage, work):
        if work:
            loaders: Loaders = {
                "dense": partial(run.teacher.load, run.dtype, run.device),
                "uniform": partial(_uniform, run, results),
                "stitched": partial(stitched.checkpoint.load, run.dtype, run.device),
            }
            final = partial(Checkpoint.open(exported.folder).load, run.dtype, run.device)
            if refitted is not None and results.recover is not None:
                loaders["refit"] = lambda: as_dtype(refitted.model(), run.dtype)
            elif refitted is not None:
                loaders["refit"] = final
            if results.recover is not None:
                loaders["recovered"] = final
            measured = measure_models(run, loaders, results.text, exported.dtype)
            parallel.in_main(save_figures, stage.folder / FIGURES, measured)
        return read_figures(stage.folder / FIGURES)


def _uniform(run: Run, results: StageResults) -> Any:
    """The best uniform model at the same budget."""
    reader = results.database.reader
    model = as_dtype(stitch(reader, results.search.uniform), run.dtype)
    reader.release()
    return model


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


def measure_models(run: Run, loaders: Loaders, texts: Texts, dtype: torch.dtype) -> Measured:
    """Measure models on the same text, as many at once as fit beside the dense one; processes share the text.

    Models are loaded in the run's element type; their sizes in bytes are those in `dtype`.
    """
    measured: Measured = {}
    waiting, room = [name for name in loaders if name != "dense"], room_for_models(run.device)
    models: dict[ModelKey, Any] = {}
    while waiting:
        models = {name: model for name, model in models.items() if name == "dense"}
        with parallel.agree():
            if not models:
                models["dense"] = loaders["dense"]()
            while waiting and takes_another([_bytes(model) for model in models.values()], room):
                name = waiting.pop(0)
                models[name] = loaders[name]().to(run.device)
        measured = {**_measure_together(run, models, texts, dtype), **measured}
    return {name: measured[name] for name in loaders}


def _bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _late(run: Run) -> Callable[[float], Callable[[], bool]]:
    """For a share of the time until the evaluation must end: whether this share has passed."""
    begun, ends = time.monotonic(), math.inf if run.evaluation_ends is None else run.evaluation_ends
    return lambda share: lambda: time.monotonic() - begun > share * (ends - begun)


def _measure_together(run: Run, models: dict[ModelKey, Any], texts: Texts, dtype: torch.dtype) -> Measured:
    tokens = texts["evaluation"].tokens
    named: dict[str, Any] = {str(name): model for name, model in models.items()}
    late = _late(run)
    quality = measure_quality(
        models["dense"],
        named,
        tokens,
        batch_tokens=run.batch_tokens,
        progress=run.reporter.advance,
        late=late(QUALITY),
    )
    # The first process alone times the models.
    speed = parallel.broadcast(measure_speed(named, tokens[:1], late=late(SPEED)) if parallel.is_main() else {})
    tokenizer = run.checkpoint.tokenizer()
    sequences, remarks = all_copying(
        tokenizer, tokens, longest_sequence(models["dense"].config), lists=number_of_lists(tokens.numel())
    )
    copied = measure_copying(named, sequences, batch_tokens=run.batch_tokens, late=late(COPYING))
    if skipped := [each.name for each in sequences[len(copied["dense"]) :]]:
        remarks.append(f"copying was not measured for lack of time: {'; '.join(skipped)}")
    prompts = run.recipe.evaluation.prompts[: 1 if late(COPYING)() else None] if parallel.is_main() else ()
    measured: Measured = {}
    for name, model in models.items():
        params = sum(parameter.numel() for parameter in model.parameters())
        measured[name] = ModelFigures(
            params=params,
            block_params=block_parameters(model, run.checkpoint.family.layers),
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
            continuations=tuple(continue_greedily(model, tokenizer, prompts)),
        )
    return measured
