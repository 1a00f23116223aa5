"""Recovery of a model that was pruned earlier, by distillation from its dense model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from darwinlm.export.hf import check_saved, save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import is_custom
from darwinlm.families.origin import Origin, origin_of
from darwinlm.recipe import Recipe, load_recipe, parse_recipe
from darwinlm.recipe.settled import saved_dtype
from darwinlm.report.summary import FILE, RecoveryFigures, Summary, read_summary
from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import model_folder, read_manifest
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.figures import ModelKey
from darwinlm.runtime.places import check_output
from darwinlm.stages.evaluate import FIGURES, Loaders, measure_models, read_figures, save_figures
from darwinlm.stages.export import Exported, changed_file, record_files
from darwinlm.stages.recover import Recovered, check_recovery, recover_model
from darwinlm.stages.report import summary_of, write_report
from darwinlm.stages.text import Texts, text_stage
from darwinlm.stages.vocabulary import with_vocabulary_of
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
) -> Summary:
    """Train a smaller model, as `darwinlm recover`. Repeating the call resumes or reuses the training.

    Args:
        model: Folder of the smaller model, or output folder of a run. The recipe of a run is the starting point, and
            text of its other purposes is excluded.
        out: Output folder.
        teacher: The dense model; overrides the recipe's.
        tokens: Number of training tokens, 300000 or "10B"; overrides the recipe.
        text: Source of the training text; overrides the recipe's.
        recipe: Recipe or path of one; None starts from that of the run, or from the defaults. The run's dense model and
            text are used if the recipe names none.
        assignments: "section.field=value" strings, applied to the recipe.
        reporter: Receiver of progress; None prints to the terminal.

    Returns the contents of summary.json: figures of the dense model and of the smaller one before and after training,
    the record of the training, and search and refit of the pruning run. Raises DarwinLMError.
    """
    folder = Path(model).expanduser()
    check_output(Path(out).expanduser(), "--out", [folder])
    small = model_folder(folder)
    of_a_run = small != folder
    summary = read_summary(folder / FILE) if of_a_run and (folder / FILE).is_file() else None
    overrides = {"recovery.tokens": tokens, "recovery.text": text}
    if not of_a_run and text is not None:
        overrides["text.source"] = text
    of_run = parse_recipe(summary.recipe, str(folder / FILE)) if summary is not None else Recipe()
    resolved = load_recipe(of_run if recipe is None else recipe, assignments, {**overrides, "teacher": teacher})
    dense = resolved.teacher or resolved.model or of_run.teacher or of_run.model
    settings = resolved.text
    if "source" not in settings.model_fields_set:  # the run's text, with its permission and its split
        given = {name: getattr(settings, name) for name in settings.model_fields_set}
        settings = of_run.text.model_copy(update=given)
    resolved = resolved.model_copy(update={"model": dense, "text": settings, "rounds": ()})
    if resolved.model is None:
        raise RecipeError("no dense model is given: name the original model with --teacher")
    if not resolved.recovery.tokens:
        raise RecipeError("recovery.tokens is 0: say how many tokens to train on, such as --tokens 300M")
    student = Checkpoint.open(small, allow_remote_code=resolved.allow_remote_code)
    run = Run(resolved, Path(out).expanduser(), reporter or Reporter())
    run.checkpoint = with_vocabulary_of(run, run.checkpoint, student)
    check_recovery(run, (student, student.tokenizer()))
    texts = text_stage(run) if of_a_run else text_stage(run, BARE_PURPOSES)
    recovered = recover_model(
        run,
        texts,
        (student, student.tokenizer()),
        lambda: student.load(torch.float32),
        {"student": student.digest},
    )
    return _finish(run, texts, student, recovered, summary)


def _finish(run: Run, texts: Texts, student: Checkpoint, recovered: Recovered, made: Summary | None) -> Summary:
    """Save the model in its element type, check it, measure it, and write the report."""
    dtype = saved_dtype(run.recipe, student.dtype)
    target = run.folder / "model"
    key = {
        "recover": recovered.stage.digest,
        "dtype": str(dtype),
        "text": texts["evaluation"].digest,
        "evaluation": run.recipe.evaluation.model_dump(),
        "arithmetic": run.arithmetic,
    }
    with run.stage("export", key, "export and evaluation", shared=True) as (stage, work):
        with parallel.agree():
            changed = changed_file(target, stage) if parallel.is_main() and not work else None
            if changed:
                run.reporter.say(f"export: {changed}, so the model is written again")
            if parallel.is_main() and (work or changed):
                final = as_dtype(recovered.model(), dtype)
                save_model(final, target, tokenizer=student.tokenizer(), source=student.folder)
                check_saved(final, target, texts["validation"].tokens[:2, :128])
                record_files(target, stage)
                if not work:
                    stage.finish(**read_manifest(stage.folder).facts)
        if work:
            models: dict[ModelKey, Checkpoint] = {
                "dense": run.teacher,
                "before": student,
                "recovered": Checkpoint.open(target),
            }
            loaders: Loaders = {name: partial(model.load, run.dtype, run.device) for name, model in models.items()}
            figures = measure_models(run, loaders, texts, dtype)
            parallel.in_main(save_figures, stage.folder / FIGURES, figures)
        measured = read_figures(stage.folder / FIGURES)
    saved = Checkpoint.open(target)
    of_teacher, of_saved = (vars(origin_of(model.folder, model.source)) for model in (run.teacher, saved))
    # What the dense model doesn't say of itself, the smaller one may.
    origin = Origin(**{name: value or of_saved[name] for name, value in of_teacher.items()})
    recovery = RecoveryFigures.model_validate(recovered.record)
    of_the_run = ("from_pruned", "budget", "search", "refit", "vocabulary")
    pruning = {} if made is None else {name: getattr(made, name) for name in of_the_run}
    exported = Exported(target, dtype, is_custom(saved.config), saved.digest)
    summary = summary_of(run, texts, exported, measured, origin=origin, recovery=recovery, **pruning)
    write_report(run.folder, target, summary)
    return summary
