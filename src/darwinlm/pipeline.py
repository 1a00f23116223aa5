"""A run, top to bottom: what `darwinlm.prune` does.

`run(STAGE, *inputs)` is the result of a stage, which is skipped if its folder is complete for the same key. The stages
are declared in `stages/`; a click on one leads to its work.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from darwinlm.planning.run_plan import plan_here
from darwinlm.report.write import write_summary
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import duration, size
from darwinlm.runtime.run import Ended, Run
from darwinlm.steps.budget.step import check_budget, problem_of
from darwinlm.steps.chats.step import CHATS
from darwinlm.steps.database.removal_metrics import find_metric
from darwinlm.steps.database.step import DATABASE, GRADIENTS
from darwinlm.steps.evaluate.step import EVALUATE, models_of_run
from darwinlm.steps.export.step import EXPORT
from darwinlm.steps.file.step import FILE, check_file
from darwinlm.steps.latency.step import LATENCY
from darwinlm.steps.own_text.step import OWN_TEXT, OWN_TEXT_RECOVERY
from darwinlm.steps.recover.step import RECOVER, check_recovery
from darwinlm.steps.refit.step import REFIT
from darwinlm.steps.results import Corrected, Inputs
from darwinlm.steps.run_sizes import Sizes
from darwinlm.steps.search.step import SEARCH
from darwinlm.steps.source.step import open_model
from darwinlm.steps.stitch.step import STITCH
from darwinlm.steps.text.shares import amount_for_pruning, amount_for_recovery
from darwinlm.steps.text.step import TEXT, check_text, documents_of
from darwinlm.steps.vocabulary.step import VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.report.summary import Summary
    from darwinlm.steps.budget.problem import Problem
    from darwinlm.steps.database.step import PruningDatabase
    from darwinlm.steps.search.step import SearchResult
    from darwinlm.steps.stitch.step import Stitched

STAGES = (
    *(OWN_TEXT, VOCABULARY, TEXT, LATENCY, GRADIENTS, DATABASE, SEARCH, STITCH, REFIT),
    *(OWN_TEXT_RECOVERY, RECOVER, EXPORT, CHATS, EVALUATE, FILE),
)
"""All stages in order."""
REPORT = "report"
STEPS = (*(stage.name for stage in STAGES), REPORT)
"""Where a run may end."""

open_run = partial(Run, order=STEPS)
"""A run of this pipeline, with the other arguments of `Run`. Raises as it does."""


def prune(run: Run) -> Summary | None:
    """Prune a model to one size; None if the run ends before its report. Raises DarwinLMError."""
    try:
        inputs = read_inputs(run)
        problem = plan(run, inputs)
        return make(run, inputs, problem, build(run, inputs))
    except Ended:
        return None


def read_inputs(run: Run) -> Inputs:
    """Model, text and, for budgets in time, the times of its modules. Raises DarwinLMError."""
    recipe = run.recipe
    original = open_model(run.context, recipe.model)
    check(run, original)
    _announce(run, original)
    own_text = run(OWN_TEXT, original) if amount_for_pruning(recipe) else None
    vocabulary = run(VOCABULARY, original, own_text) if recipe.vocabulary not in (None, 1) else None
    dense = original if vocabulary is None else vocabulary.checkpoint
    text = run(TEXT, dense, own_text)
    latency = run(LATENCY, dense) if recipe.budget.timed else None
    return Inputs(original, dense, vocabulary, text, latency)


def check(run: Run, original: Checkpoint) -> None:
    """Check before the first stage what can be checked without work. Raises DarwinLMError."""
    recipe = run.recipe
    check_text(recipe, original)
    check_budget(recipe, original, run.context.device)
    original.check_carried()
    check_file(recipe)
    if recipe.recovery.tokens:
        check_recovery(run.context, recipe, original, original)


def _announce(run: Run, original: Checkpoint) -> None:
    """Say the planned time and memory of a new run."""
    if not parallel.is_main() or run.until not in (None, REPORT) or run.context.path(TEXT.name).exists():
        return
    reporter, limit = run.context.reporter, run.context.limit
    planned = plan_here(Sizes(original, run.recipe, parallel.size()), run.context.device)
    said = f"{duration(planned.seconds()[0])} if nothing else runs"
    if limit is not None:
        amounts = f"with the amounts of the preset {run.recipe.preset}"
        said = f"{duration(limit.seconds)} at most if nothing else runs, {amounts}"
    reporter.say(f"planned: {said}, {size(planned.peak.bytes)} of memory beside caches")


def plan(run: Run, inputs: Inputs) -> Problem:
    """The search problem: levels, costs, budget. Raises BudgetError."""
    problem, note = problem_of(run.recipe, inputs.dense, inputs.latency)
    for message in filter(None, (note, inputs.dense.left_out)):
        run.context.reporter.say(message)
    return problem


def build(run: Run, inputs: Inputs) -> PruningDatabase:
    """Every module at every level. Raises DarwinLMError."""
    dense, text = inputs.dense, inputs.text
    weighted = find_metric(run.recipe.database.metric).gradients
    gradients = run(GRADIENTS, text["calibration"], dense) if weighted else None
    return run(DATABASE, dense, text["calibration"], gradients)


def cut(run: Run, inputs: Inputs, problem: Problem, database: PruningDatabase) -> tuple[SearchResult, Stitched]:
    """The allocation, and its model. Raises DarwinLMError."""
    text = inputs.text
    search = run(SEARCH, inputs.dense, database, problem, text["fitness"], text.get("training"))
    return search, run(STITCH, database, search)


def correct(run: Run, inputs: Inputs, stitched: Stitched, *, reserved: Iterable[str] = ()) -> Corrected:
    """Correct, train and save a smaller model; the training reads neither `reserved` documents nor those of the run.

    Raises DarwinLMError.
    """
    recipe, dense, text = run.recipe, inputs.dense, inputs.text
    refit, recovered = None, None
    if recipe.refit.tokens:
        refit = run(REFIT, stitched, dense, text["calibration"], text["validation"])
    if recipe.recovery.tokens:
        own_text = run(OWN_TEXT_RECOVERY, inputs.original) if amount_for_recovery(recipe) else None
        documents = tuple(sorted({*documents_of(text), *reserved}))
        recovered = run(RECOVER, dense, dense, refit or stitched, text["validation"], documents, own_text)
    return Corrected(refit, recovered, run(EXPORT, dense, dense, recovered or refit or stitched, text["validation"]))


def make(run: Run, inputs: Inputs, problem: Problem, database: PruningDatabase) -> Summary:
    """One size, from the search to the report. Raises DarwinLMError."""
    recipe, dense, text = run.recipe, inputs.dense, inputs.text
    search, stitched = cut(run, inputs, problem, database)
    made = correct(run, inputs, stitched)
    models = models_of_run(run.context, dense, database, search, stitched, made.refit, made.recovered, made.exported)
    chats = run(CHATS, dense, models) if recipe.text.answer_tokens else None
    measured = run(EVALUATE, dense, models, made.exported, text["evaluation"])
    file = run(FILE, dense, made.exported, text["evaluation"]) if recipe.budget.kind == "file" else None
    run.reach(REPORT)
    return write_summary(run.task(REPORT), inputs, problem, search, made, chats, measured, file)
