"""A run, top to bottom: what `darwinlm.prune` does.

`run(Step(inputs))` is the result of a step, which is skipped if its folder is complete for the same key. Each step is a
class in a package of its own, `steps/NAME/step.py`: its settings, inputs, work, cost and figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.sections import AnyRecipe, Sections
from darwinlm.runtime.step import AnyStep
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.chats.step import Chats
from darwinlm.steps.database.database_settings import DatabaseSettings
from darwinlm.steps.database.step import Database, Modules, PruningDatabase
from darwinlm.steps.evaluate.model_figures import RECOVERED, STITCHED
from darwinlm.steps.evaluate.step import Evaluate
from darwinlm.steps.export.step import Export
from darwinlm.steps.file.step import BoundedFile
from darwinlm.steps.fitted_vocabulary.step import FittedText, FittedVocabulary
from darwinlm.steps.gradients.step import Gradients
from darwinlm.steps.latency.step import Latency
from darwinlm.steps.own_text.step import OwnText, OwnTextForRecovery
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.recover.step import Recover
from darwinlm.steps.refit.refit_settings import RefitSettings
from darwinlm.steps.refit.step import Refit
from darwinlm.steps.results import Corrected, Inputs
from darwinlm.steps.search.search_amounts import SearchAmounts
from darwinlm.steps.search.step import Search
from darwinlm.steps.stitch.step import Stitch
from darwinlm.steps.text.step import Text
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.step import Vocabulary
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.report.curve_figures import CurveFigures
    from darwinlm.report.summary import Summary
    from darwinlm.runtime.run import Run
    from darwinlm.steps.budget.problem import Problem
    from darwinlm.steps.search.step import SearchResult
    from darwinlm.steps.stitch.step import Stitched

STEPS: tuple[type[AnyStep], ...] = (
    OwnText,
    Vocabulary,
    Text,
    Latency,
    Gradients,
    Database,
    FittedVocabulary,
    FittedText,
    Search,
    Stitch,
    Refit,
    OwnTextForRecovery,
    Recover,
    Export,
    Chats,
    Evaluate,
    BoundedFile,
)
"""All steps in order."""
NARROWING = frozenset({Gradients, Database, Search, Refit})
"""Steps that read no text and take no time if layers stay whole."""
REPORT = "report"
ORDER = (*(step.name for step in STEPS), REPORT)
"""Where a run may end."""


def steps_of(recipe: Sections) -> tuple[type[AnyStep], ...]:
    """The steps that read text or take time in a recipe's run."""
    narrows = recipe.section(SearchAmounts).narrows
    return tuple(step for step in STEPS if narrows or step not in NARROWING)


def prune(run: Run[AnyRecipe], *, further: Sequence[type[AnyStep]] = ()) -> Summary | None:
    """Prune a model to one size; None if the run ends before its report. Raises DarwinLMError.

    The time that the run announces includes that of `further` steps, which the caller runs afterwards.
    """
    from darwinlm.runtime.run import Ended

    try:
        inputs = read_inputs(run, further=further)
        fitted = run.recipe.section(VocabularySettings).auto
        problem = None if fitted else plan(run, inputs)
        return make(run, *fit(run, inputs, problem, modules_of(run, inputs, problem)))
    except Ended:
        return None


def read_inputs(
    run: Run[AnyRecipe], others: Sequence[tuple[AnyRecipe, str]] = (), *, further: Sequence[type[AnyStep]] = ()
) -> Inputs:
    """Model, text and, for budgets in time, the times of its modules. Raises DarwinLMError.

    `others` are recipes of further sizes that the run makes, with the last step of each, and `further` steps follow the
    pipeline's; what the run announces counts them.
    """
    from darwinlm.planning.run_plan import announce, expect_disk
    from darwinlm.steps.source.whole_model import open_model
    from darwinlm.steps.text.reading import kind_of, with_answers

    recipe, shares = run.recipe, text_shares(run.recipe)
    original = with_answers(open_model(run.context, recipe.model), recipe.section(TextSettings))
    check(run, original)
    steps = steps_of(recipe)
    expect_disk(run, steps, original, others)
    if kind := kind_of(original):
        run.context.reporter.say(kind)
    if run.until in (None, REPORT) and not run.context.path(Text.name).exists():
        announce(run, (*steps, *further), original, others)
    own_tokens = OwnText.amount(recipe, shares)
    own_text = run(OwnText(original, own_tokens)) if own_tokens else None
    settings = recipe.section(VocabularySettings)
    fixed = settings.cut and not settings.auto
    vocabulary = run(Vocabulary(original, own_text, shares)) if fixed else None
    dense = original if vocabulary is None else vocabulary.checkpoint
    text = run(Text(dense, own_text, shares))
    timed = recipe.section(BudgetSettings).timed
    latency = run(Latency(original, _fewest_tokens(recipe, original, dense))) if timed else None
    return Inputs(original, dense, vocabulary, text, latency, own_text)


def text_shares(recipe: Sections) -> dict[str, int]:
    """Number of tokens of text that the steps read, by purpose."""
    from darwinlm.steps.text.shares import shares_of

    return shares_of(recipe, steps_of(recipe))


def check(run: Run[AnyRecipe], original: Checkpoint) -> None:
    """Check before the first step what can be checked without work. Raises DarwinLMError."""
    from darwinlm.planning.run_plan import check_memory
    from darwinlm.steps.budget.search_problem import check_layers, problem_of
    from darwinlm.steps.file.bounded_file import check_file
    from darwinlm.steps.recover.recovery_run import check_recovery
    from darwinlm.steps.text.reading import check_reader
    from darwinlm.steps.text.text_source import check_text

    recipe, context = run.recipe, run.context
    text = recipe.section(TextSettings)
    budget = recipe.section(BudgetSettings)
    recovery = recipe.section(RecoverySettings)
    check_text(text, original)
    check_reader(original, recipe)
    if recipe.section(VocabularySettings).cut:
        _check_vocabulary(recipe, original)
    elif budget.timed:
        check_layers(recipe, original)
    else:
        problem_of(recipe, original, None)
    check_memory(steps_of(recipe), recipe, original, context.device)
    original.check_carried()
    check_file(budget)
    if recovery.tokens:
        check_recovery(context, recovery, text, original, original)


def _fewest_tokens(recipe: Sections, original: Checkpoint, dense: Checkpoint) -> int:
    """The smallest number of tokens that a run may keep: those of the dense model, unless the budget decides."""
    from darwinlm.steps.fitted_vocabulary.vocabulary_sizes import Sizes
    from darwinlm.steps.vocabulary.token_choice import ModelTokens

    if recipe.section(VocabularySettings).auto:
        return Sizes.of(recipe, original, ModelTokens.of(original)).least
    return int(dense.config.vocab_size)


def _check_vocabulary(recipe: Sections, original: Checkpoint) -> None:
    from darwinlm.steps.fitted_vocabulary.vocabulary_sizes import Sizes
    from darwinlm.steps.vocabulary.token_choice import ModelTokens

    settings, tokens = recipe.section(VocabularySettings), ModelTokens.of(original)
    if settings.keep is not None:
        tokens.size(settings.keep)
    if settings.auto and not recipe.section(BudgetSettings).timed:
        Sizes.of(recipe, original, tokens).smallest()


def plan(run: Run[AnyRecipe], inputs: Inputs) -> Problem:
    """The search problem: levels, costs, budget. Raises BudgetError."""
    from darwinlm.steps.budget.search_problem import problem_of

    problem, note = problem_of(run.recipe, inputs.dense, inputs.times)
    for message in filter(None, (note, inputs.dense.left_out)):
        run.context.reporter.say(message)
    return problem


def modules_of(run: Run[AnyRecipe], inputs: Inputs, problem: Problem | None = None) -> Modules:
    """What models are cut from: a database, unless layers stay whole. Raises DarwinLMError.

    `problem` is that of a run with one size: it needs no database if it has only one allocation.
    """
    from darwinlm.model.units.modules import ModuleReader

    chosen = problem is not None and problem.only is not None
    if run.recipe.section(SearchAmounts).narrows and not chosen:
        return build(run, inputs)
    return Modules(ModuleReader(inputs.dense, run.recipe.section(UnitsSettings)))


def build(run: Run[AnyRecipe], inputs: Inputs) -> PruningDatabase:
    """Every module at every level. Raises DarwinLMError."""
    dense, calibration = inputs.dense, inputs.text["calibration"]
    weighted = run.recipe.section(DatabaseSettings).metric.gradients
    gradients = run(Gradients(calibration, dense)) if weighted else None
    return run(Database(dense, calibration, gradients))


def fit(
    run: Run[AnyRecipe], inputs: Inputs, problem: Problem | None, database: Modules
) -> tuple[Inputs, Problem, Modules]:
    """Choose the size of the vocabulary if the budget does, so that there is no problem yet. Raises DarwinLMError.

    Returns what follows from it: the inputs and the database of the model with fewer tokens, and its problem.
    """
    from dataclasses import replace

    if problem is not None:
        return inputs, problem, database
    assert isinstance(database, PruningDatabase), "modules become narrower where the vocabulary is fitted"
    shares, own_text = text_shares(run.recipe), inputs.own_text
    vocabulary = run(FittedVocabulary(inputs.original, database, own_text, shares, inputs.latency))
    dense = vocabulary.checkpoint
    fitted = replace(inputs, dense=dense, vocabulary=vocabulary, text=run(FittedText(dense, own_text, shares)))
    return fitted, plan(run, fitted), database.of(dense)


def cut(run: Run[AnyRecipe], inputs: Inputs, problem: Problem, database: Modules) -> tuple[SearchResult, Stitched]:
    """The allocation, and its model. Raises DarwinLMError."""
    text = inputs.text
    search = run(Search(inputs.dense, database, problem, text.get("fitness"), text.get("training")))
    return search, run(Stitch(database, search))


def correct(run: Run[AnyRecipe], inputs: Inputs, stitched: Stitched, *, reserved: Iterable[str] = ()) -> Corrected:
    """Correct, train and save a smaller model; the training reads neither `reserved` documents nor those of the run.

    Raises DarwinLMError.
    """
    from darwinlm.steps.text.text_source import documents_of

    recipe, dense, text = run.recipe, inputs.dense, inputs.text
    validation = text["validation"]
    name, smaller = refit(run, inputs, stitched)
    if recipe.section(RecoverySettings).tokens:
        own_tokens = OwnTextForRecovery.amount(recipe, {})
        own_text = run(OwnTextForRecovery(inputs.original, own_tokens)) if own_tokens else None
        documents = tuple(sorted({*documents_of(text), *reserved}))
        name, smaller = RECOVERED, run(Recover(dense, dense, smaller, validation, documents, own_text))
    return Corrected(name, run(Export(dense, dense, smaller, validation)))


def refit(run: Run[AnyRecipe], inputs: Inputs, stitched: Stitched) -> tuple[str, Stitched]:
    """The smaller model after the refit, if the recipe asks for it, and its name among those that are measured.

    If all blocks are kept, or the first ones, there is nothing to refit.
    """
    from darwinlm.model.surgery.smaller_model import block_parameters

    sizes = [
        block_parameters(model.outline, inputs.dense.family.layers) for model in (inputs.dense, stitched.checkpoint)
    ]
    asked = run.recipe.section(SearchAmounts).narrows and run.recipe.section(RefitSettings).tokens
    if not asked or sizes[0] == sizes[1]:
        return STITCHED, stitched
    return "refit", run(Refit(stitched, inputs.dense, inputs.text["calibration"], inputs.text["validation"]))


def make(
    run: Run[AnyRecipe],
    inputs: Inputs,
    problem: Problem,
    database: Modules,
    *,
    score: Callable[[SearchResult, Corrected], CurveFigures] | None = None,
) -> Summary:
    """One size, from the search to the report; `score` measures the saved model. Raises DarwinLMError."""
    from darwinlm.model.objective.chosen import objective_of
    from darwinlm.report.write import write_summary
    from darwinlm.steps.evaluate.measured_models import models_of_run

    recipe, dense, text = run.recipe, inputs.dense, inputs.text
    search, stitched = cut(run, inputs, problem, database)
    corrected = correct(run, inputs, stitched)
    models = models_of_run(run.context, dense, database, search, stitched, corrected)
    answers = recipe.section(TextSettings).answer_tokens
    if answers and not objective_of(dense).reads:
        run(Chats(dense, models, answers))
    measured = run(Evaluate(dense, models, corrected.exported, text["evaluation"]))
    if recipe.section(BudgetSettings).kind == "file":
        run(BoundedFile(dense, corrected.exported, text["evaluation"]))
    run.reach(REPORT)
    curve = None if score is None else score(search, corrected)
    return write_summary(run, inputs, problem, search, corrected.exported, measured, curve)
