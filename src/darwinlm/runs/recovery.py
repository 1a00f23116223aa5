"""Recovery on its own: train a model that was pruned earlier against the dense model it was cut from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from darwinlm import __version__, parallel
from darwinlm.artifact import StageFolder, digest_of, read_json, write_json
from darwinlm.console import Reporter
from darwinlm.errors import ModelError, RecipeError
from darwinlm.evaluation.quality import measure_quality
from darwinlm.export.hf import check_saved, is_custom, save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe, load_recipe, merge, parse_recipe
from darwinlm.run import MARKER, Run
from darwinlm.stages.dtype import export_dtype
from darwinlm.stages.recover import Recovered, recover_model
from darwinlm.stages.text import Texts, text_stage
from darwinlm.surgery.stitch import as_dtype

BARE_PURPOSES = ("validation", "evaluation")


def recover(
    model: str | Path,
    out: str | Path = "runs/recovered",
    *,
    teacher: str | None = None,
    tokens: int | str | None = None,
    text: str | None = None,
    recipe: Recipe | str | Path | None = None,
    assignments: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a smaller model, the same code as `darwinlm recover`; the same call again goes on or reuses.

    Args:
        model: folder of the smaller model, or output folder of a run, whose recipe is then the starting point:
            text that served another purpose there isn't trained on.
        out: output folder.
        teacher: the dense model; overrides the recipe's.
        tokens: how many are trained on, 300000 or "10B"; overrides the recipe's.
        text: source of the training text; overrides the recipe's.
        recipe: a recipe or the path of one; None starts from the run's, or from the defaults.
        assignments: "section.field=value" strings, applied to the recipe.
        reporter: tells the user; None prints to the terminal.

    Returns:
        What summary.json holds: the training's record, and perplexity and KL before and after on evaluation text.

    Raises:
        DarwinLMError: the input is wrong; see `darwinlm.errors`.
    """
    folder = Path(model).expanduser()
    of_a_run = (folder / MARKER).is_file()
    small = folder / "model" if of_a_run else folder
    if of_a_run and not small.is_dir():
        raise ModelError(f"{folder} holds no finished model: run the same `darwinlm prune` command again to finish it")
    overrides = {"recovery.tokens": tokens, "recovery.text": text}
    if not of_a_run and text is not None:
        overrides["text.source"] = text
    resolved = _resolve(folder if of_a_run else None, recipe, assignments, {**overrides, "teacher": teacher})
    resolved = resolved.model_copy(update={"model": resolved.teacher or resolved.model, "rounds": ()})
    if resolved.model is None:
        raise RecipeError("no dense model is named: give --teacher, the model that this one was cut from")
    if not resolved.recovery.tokens:
        raise RecipeError("recovery.tokens is 0: say how many tokens to train on, such as --tokens 300M")
    student = Checkpoint.open(small, allow_remote_code=resolved.allow_remote_code)
    run = Run(resolved, Path(out), reporter or Reporter())
    texts = text_stage(run) if of_a_run else text_stage(run, BARE_PURPOSES)
    recovered = recover_model(
        run,
        texts,
        run.teacher,
        (student, student.tokenizer()),
        lambda: student.load(torch.float32),
        {"student": student.digest},
    )
    return _finish(run, texts, student, recovered)


def _resolve(
    folder: Path | None, recipe: Recipe | str | Path | None, assignments: Sequence[str], overrides: dict[str, Any]
) -> Recipe:
    if isinstance(recipe, Recipe):
        return merge(recipe, assignments, overrides)
    if recipe is not None or folder is None or not (folder / "summary.json").is_file():
        return load_recipe(recipe, assignments, overrides)
    tree = read_json(folder / "summary.json")["recipe"]
    return merge(parse_recipe(tree, str(folder / "summary.json")), assignments, overrides)


def _finish(run: Run, texts: Texts, student: Checkpoint, recovered: Recovered) -> dict[str, Any]:
    """Save the model in its own type, check it, and measure what was gained."""
    dtype = export_dtype(run) if run.recipe.export.dtype != "auto" else student.dtype
    target = run.folder / "model"
    key = {
        "recover": recovered.stage.digest,
        "dtype": str(dtype),
        "text": texts["evaluation"].digest,
        "arithmetic": run.arithmetic,
    }
    with run.stage("export", key, "export and evaluation") as (stage, work):
        if work or not (target / "config.json").is_file():
            final = as_dtype(recovered.checkpoint.load(torch.float32), _dtype(dtype))
            save_model(final, target, tokenizer=student.tokenizer())
            check_saved(final, target, texts["validation"].tokens[:2, :128])
        if work:
            _measure(run, texts, student, target, stage)
        measured = read_json(stage.folder / "quality.json")
    summary = {
        "version": __version__,
        "model": student.source,
        "teacher": run.teacher.source,
        "models": measured,
        "recovery": recovered.record,
        "custom_code": is_custom(student.config),
        "recipe": run.recipe.model_dump(mode="json"),
        "digest": digest_of(key),
    }
    if parallel.is_main():
        write_json(run.folder / "summary.json", summary)
    return summary


def _dtype(dtype: Any) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."))


def _measure(run: Run, texts: Texts, student: Checkpoint, target: Path, stage: StageFolder) -> None:
    dense = run.teacher.load(run.dtype, run.device)
    models = {
        "dense": dense,
        "before": student.load(run.dtype, run.device),
        "recovered": Checkpoint.open(target).load(run.dtype, run.device),
    }
    quality = measure_quality(
        dense, models, texts["evaluation"].tokens, batch_tokens=run.batch_tokens, progress=run.reporter.advance
    )
    figures = {name: {"perplexity": found.perplexity, "kl": found.kl} for name, found in quality.items()}
    write_json(stage.folder / "quality.json", figures)
