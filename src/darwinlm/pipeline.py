"""The main path in order.

vocabulary → text → plan → database → search → stitch → refit → recover → export → evaluate → report

Each function is one stage. It is skipped if its folder is complete for the same inputs, otherwise resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.whole import check_carried
from darwinlm.planning.time_limit import TimeLimit
from darwinlm.run import Run, mark
from darwinlm.runtime import parallel
from darwinlm.search.problem.space import Allocation
from darwinlm.stages.database import database_stage
from darwinlm.stages.evaluate import evaluate_stage
from darwinlm.stages.export import export_stage
from darwinlm.stages.plan import plan_stage
from darwinlm.stages.recover import check_recovery, recover_stage
from darwinlm.stages.refit import refit_stage
from darwinlm.stages.report import report_stage
from darwinlm.stages.results import StageResults
from darwinlm.stages.search import search_stage
from darwinlm.stages.stitch import stitch_stage
from darwinlm.stages.text import text_stage
from darwinlm.stages.vocabulary import vocabulary_stage
from darwinlm.surgery.stitch import block_parameters

STAGES = (
    "vocabulary", "text", "plan", "database", "search", "stitch", "refit", "recover", "export", "evaluate", "report",
)  # fmt: skip


def run_stages(
    run: Run, until: str, *, neighbour: Allocation | None = None, limit: TimeLimit | None = None
) -> StageResults:
    """Run the stages in order up to `until`, and return their results.

    The search starts from `neighbour`, a result at another budget with the same database, if it is better. Several runs
    may share a `limit`; None takes the recipe's, from now on.
    """
    limit = limit or TimeLimit.of(run.recipe)
    if run.recipe.recovery.tokens and STAGES.index(until) >= STAGES.index("recover"):
        check_recovery(run)
    with parallel.main_first():
        check_carried(run.teacher)
    vocabulary = vocabulary_stage(run)
    if run.recipe.rounds:
        run = _last_round(run)
    results = StageResults()
    steps: dict[str, Callable[[], object]] = {
        "vocabulary": lambda: vocabulary,
        "text": lambda: text_stage(run),
        "plan": lambda: plan_stage(run),
        "database": lambda: database_stage(run, results.text),
        "search": lambda: search_stage(run, results.text, results.database, results.plan, neighbour=neighbour),
        "stitch": lambda: stitch_stage(run, results.database, results.search),
        "refit": lambda: refit_stage(run, results.text, results.stitch),
        "recover": lambda: recover_stage(run, results.text, results.stitch, results.refit),
        "export": lambda: export_stage(run, results.text, results.stitch, results.refit, results.recover),
        "evaluate": lambda: evaluate_stage(run, results),
        "report": lambda: report_stage(run, results),
    }
    for name in STAGES[: STAGES.index(until) + 1]:
        if limit is not None:
            limit.before(name, run, results)
        setattr(results, name, steps[name]())
    return results


def _last_round(run: Run) -> Run:
    """Run all rounds but the last, in subfolders, and return the last one, which is written to the run's folder.

    Database, search and refit of a round use its input model as reference. Recovery and the report always use the
    original dense model.
    """
    recipe = run.recipe
    parallel.in_main(mark, run.folder)
    dense = _block_parameters(run.checkpoint)
    model, kept = str(recipe.model), dense
    *earlier, last = recipe.rounds
    for number, share in enumerate(earlier):
        folder = run.folder / "rounds" / str(number + 1)
        run_stages(_round(run, model, share, share * dense / kept, folder, number), "export")
        model = str(folder / "model")
        kept = _block_parameters(Checkpoint.open(Path(model)))
    return _round(run, model, last, last * dense / kept, run.folder, len(earlier))


def _round(run: Run, model: str, share: float, keep: float, folder: Path, number: int) -> Run:
    """The run of one round: its model, its share of it, the dense models of the whole run, and its training text.

    That is what follows the text of earlier rounds.
    """
    recipe, count = run.recipe, len(run.recipe.rounds)
    run.reporter.say(f"round {number + 1} of {count}: keep {share:.0%} of the original")
    changes = {
        "rounds": (),
        "vocabulary": None,
        "model": model,
        "teacher": recipe.teacher or recipe.model,
        "budget": recipe.budget.model_copy(update={"keep": keep}),
        "recovery": recipe.recovery.model_copy(update={"tokens": recipe.recovery.tokens // count}),
    }
    one = Run(recipe.model_copy(update=changes), folder, run.reporter)
    one.skipped_tokens = number * (one.recipe.recovery.tokens // recipe.recovery.epochs)
    one.teacher = run.teacher
    if model == recipe.model:
        one.checkpoint = run.checkpoint
    return one


def _block_parameters(checkpoint: Checkpoint) -> int:
    return block_parameters(checkpoint.skeleton(), checkpoint.family.layers)
