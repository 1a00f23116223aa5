"""The main path in order.

vocabulary → text → plan → database → search → stitch → refit → recover → export → evaluate → report

Each function is one stage. It is skipped if its folder is complete for the same inputs, otherwise resumed.
"""

from __future__ import annotations

from collections.abc import Callable

from darwinlm.planning.time_limit import TimeLimit
from darwinlm.rounds import last_round
from darwinlm.run import Run
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
    vocabulary = vocabulary_stage(run)
    if run.recipe.rounds:
        run = last_round(run, run_stages)
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
