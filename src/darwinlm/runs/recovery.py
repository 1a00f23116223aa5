"""Recovery of a model that was pruned earlier, by distillation from its dense model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from darwinlm.formats.resolve import model_folder
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.origin import Origin, origin_of
from darwinlm.model.objective.chosen import objective_of
from darwinlm.pipeline import text_shares
from darwinlm.planning.recovery_memory import check_recovery_memory
from darwinlm.recipe import Recipe, load_recipe, parse_recipe
from darwinlm.recipe.options import plain_path, text_source
from darwinlm.report.summary import FILE, Summary
from darwinlm.report.write import summary_of, write_report
from darwinlm.runs.finished import read_summary
from darwinlm.runs.given_paths import output_folder
from darwinlm.runs.opening import open_run
from darwinlm.runs.pruning import Result, check_replaced
from darwinlm.runs.tracked import tell_models, tracked
from darwinlm.runtime.artifact import MANIFEST, STAGES
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.places import check_output
from darwinlm.runtime.run import Run
from darwinlm.runtime.torch_state import in_usual_state
from darwinlm.runtime.tracking import check_tracker
from darwinlm.steps.chats.step import Chats
from darwinlm.steps.evaluate.measured_models import Models, StoredModel
from darwinlm.steps.evaluate.model_figures import BEFORE, DENSE, RECOVERED
from darwinlm.steps.evaluate.step import Evaluate
from darwinlm.steps.export.step import Export
from darwinlm.steps.own_text.documents import Documents
from darwinlm.steps.own_text.step import FOLDER, OwnText, OwnTextForRecovery
from darwinlm.steps.recover.recovery_run import check_recovery
from darwinlm.steps.recover.step import Recover
from darwinlm.steps.source.whole_model import open_model
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.teacher.step import Teacher
from darwinlm.steps.text.reading import with_answers
from darwinlm.steps.text.step import Text
from darwinlm.steps.text.text_source import check_text, documents_of, with_own_text

BARE = ("validation", "evaluation")
"""Purposes of text for a model without a run, whose other text isn't known."""


def _train(run: Run[Recipe], small: Checkpoint, pruned: Summary | None, *, of_a_run: bool) -> None:
    """Train and measure a smaller model; `pruned` is the summary of the run that pruned it, if there is one."""
    recipe, context = run.recipe, run.context
    original = with_answers(open_model(context, recipe.model), recipe.text)
    small = with_answers(small, recipe.text)
    check_text(recipe.text, small)
    original.check_carried()
    shares = text_shares(recipe)
    if not of_a_run:
        shares = {purpose: tokens for purpose, tokens in shares.items() if purpose in BARE}
    own_tokens = OwnText.amount(recipe, shares)
    own_text = run(OwnText(original, own_tokens)) if own_tokens else None
    teacher = run(Teacher(original, small))
    check_recovery(context, recipe.recovery, recipe.text, teacher, small)
    if not (context.path(Recover.name) / MANIFEST).is_file():  # else only the rest may be left to do
        check_recovery_memory(recipe, teacher, small, context.device)
    text = run(Text(small, own_text, shares))
    validation = text["validation"]
    new_tokens = OwnTextForRecovery.amount(recipe, {})
    new_text = run(OwnTextForRecovery(original, new_tokens)) if new_tokens else None
    recovered = run(Recover(small, teacher, Stitched(small), validation, documents_of(text), new_text))
    exported = run(Export(small, teacher, recovered, validation))
    models = Models(
        {
            DENSE: StoredModel(context, teacher),
            BEFORE: StoredModel(context, small),
            RECOVERED: StoredModel(context, exported.checkpoint),
        }
    )
    if (answers := recipe.text.answer_tokens) and not objective_of(small).reads:
        run(Chats(teacher, models, answers))
    measured = run(Evaluate(small, models, exported, text["evaluation"]))
    of_teacher, of_saved = (vars(origin_of(model.folder, model.source)) for model in (teacher, exported.checkpoint))
    # What the dense model doesn't say of itself, the smaller one may.
    origin = Origin(**{name: value or of_saved[name] for name, value in of_teacher.items()})
    earlier = {} if pruned is None else {name: figures for name, figures in pruned.steps.items() if figures.lasting}
    budget = None if pruned is None else pruned.budget
    summary = summary_of(run, teacher, exported, measured, origin=origin, budget=budget, earlier=earlier)
    write_report(context.folder, exported.folder, summary)


@in_usual_state
def recover(
    model: str | Path,
    out: str | Path = "runs/recovered",
    *,
    teacher: str | Path | None = None,
    tokens: int | str | None = None,
    text: str | Path | Sequence[str | Path] | None = None,
    recipe: Recipe | str | Path | None = None,
    assignments: Iterable[str] = (),
    track: str | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Train a smaller model, as `darwinlm recover`. Repeating the call resumes or reuses the training.

    Args:
        model: Folder of the smaller model, or output folder of a run. The recipe of a run is the starting point, and
            text of its other purposes is excluded.
        out: Output folder.
        teacher: The dense model; overrides the recipe's `model`.
        tokens: Number of training tokens, 300000 or "10B"; overrides the recipe.
        text: Source of the training text, or several; overrides the recipe's.
        recipe: Recipe or path of one; None starts from that of the run, or from the defaults. The run's dense model and
            text are used if the recipe names none.
        assignments: "section.field=value" strings, applied to the recipe.
        track: Tracker that receives figures while the training works, as for `prune`.
        reporter: Receiver of progress; None prints to the terminal.

    Returns the run, as `darwinlm.prune` does. Its summary has the figures of the dense model and of the smaller one
    before and after training, the record of the training, and search and refit of the pruning run. Raises
    DarwinLMError.
    """
    check_tracker(track)
    folder = Path(model).expanduser()
    target = output_folder(out)
    check_output(target, [folder])
    small = model_folder(folder)
    student, of_a_run = Checkpoint.open(small), small != folder
    pruned = read_summary(folder / FILE) if of_a_run and (folder / FILE).is_file() else None
    overrides: dict[str, object] = {
        "model": plain_path(teacher),
        "recovery.tokens": tokens,
        "recovery.text": text_source(text),
    }
    if not of_a_run and text is not None:
        overrides["text.source"] = text_source(text)
    of_run = parse_recipe(pruned.recipe, str(folder / FILE)) if pruned is not None else Recipe()
    resolved = load_recipe(of_run if recipe is None else recipe, assignments, overrides)
    settings = resolved.text
    if "source" not in settings.model_fields_set:  # the run's text, with its split
        explicit = {name: getattr(settings, name) for name in settings.model_fields_set}
        settings = of_run.text.model_copy(update=explicit)
    recovery, own_text = resolved.recovery, folder / STAGES / OwnText.name / FOLDER
    if own_text.is_dir():  # the run's text is what the dense model wrote into this folder; the training text is new
        recovery = recovery.model_copy(update={"text": recovery.text or settings.source})
        settings = settings.model_copy(update={"source": with_own_text(str(settings.source), Documents(own_text, ""))})
    resolved = resolved.model_copy(
        update={"model": resolved.model or of_run.model, "text": settings, "recovery": recovery}
    )
    if resolved.model is None:
        raise RecipeError("no dense model is given: name the original model with --teacher")
    if not resolved.recovery.tokens:
        raise RecipeError("recovery.tokens is 0: say how many tokens to train on, such as --tokens 300M")
    check_replaced(resolved, target, "delete that one")
    run = open_run(resolved, target, reporter or Reporter())
    with tracked(run, track):
        _train(run, student, pruned, of_a_run=of_a_run)
        result = Result(run.folder)
        tell_models(run, result.summary)
    return result
