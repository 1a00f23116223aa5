"""A sweep: several budgets from one database; sizes are pruned one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from darwinlm.evaluation.measures.named import MeasureRequest
from darwinlm.pipeline import REPORT, fit, make, modules_of, plan, read_inputs
from darwinlm.recipe import BudgetSettings, Recipe, load_recipe
from darwinlm.report.summary import FILE, Summary
from darwinlm.report.sweep_page import sweep_page
from darwinlm.runs.finished import read_summary
from darwinlm.runs.given_paths import output_folder
from darwinlm.runs.opening import open_run
from darwinlm.runs.own_scores import OwnScores
from darwinlm.runs.pruning import open_size
from darwinlm.runs.tracked import tell_models, tracked
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import write_text
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError, RecipeError
from darwinlm.runtime.run import Ended
from darwinlm.runtime.torch_state import in_usual_state
from darwinlm.runtime.tracking import check_tracker

PAGE = "index.html"


@in_usual_state
def prune_sweep(
    recipes: Sequence[Recipe],
    out: str | Path,
    *,
    until: str = REPORT,
    overwrite: bool = False,
    track: str | None = None,
    reporter: Reporter | None = None,
    begun: float | None = None,
    measures: MeasureRequest | None = None,
) -> dict[str, Summary]:
    """Prune a model to several sizes, the largest first, with the same text and database.

    `darwinlm prune --keep 75%,50%` calls this.

    Args:
        recipes: Recipes that differ only in their bound, which is of the same kind. `darwinlm.load_recipes` returns
            them for a bound with several values, such as `load_recipes(None, ["model=MODEL", "budget.keep=75%,50%"])`.
        out: Output folder; each model has a subfolder, such as `keep-75`.
        until: Last stage.
        overwrite: Whether finished runs of another model in these subfolders may be replaced.
        track: Tracker that receives figures of all sizes, as for `prune`.
        reporter: Receiver of progress; None prints to the terminal.
        begun: Start of the recipes' time limit, `working_time()`; None is now. The models share the limit.
        measures: Measures of one's own, on which each size is compared with the dense model.

    Returns the summary of each model by its subfolder; none if the last stage isn't the report. Raises DarwinLMError.
    """
    check_tracker(track)
    opened = [] if measures is None else measures.open()
    folder = output_folder(out)
    ordered = _ordered(recipes)
    # Refuses a foreign folder, locks it to the end, and runs what sizes share.
    sweep = open_run(ordered[0], folder, reporter or Reporter(), begun=begun or working_time(), until=until)
    ordered = [load_recipe(recipe, (), {"preset": sweep.recipe.preset}) for recipe in ordered]
    summaries: dict[str, Summary] = {}
    with tracked(sweep, track), suppress(Ended):
        inputs = read_inputs(sweep, [(recipe, until) for recipe in ordered[1:]])
        runs = [
            open_size(
                recipe,
                folder / member_name(recipe.budget),
                sweep.context.reporter,
                overwrite=overwrite,
                parent=sweep,
                until=until,
            )
            for recipe in ordered
        ]
        own = OwnScores(sweep, inputs, opened)
        own.check()
        problems = [None if run.recipe.vocabulary.auto else plan(run, inputs) for run in runs]
        database = modules_of(sweep, inputs)
        for number, (run, problem) in enumerate(zip(runs, problems, strict=True)):
            sweep.context.reporter.say(run.folder.name)
            if sweep.context.reporter.tracker is not None:
                sweep.context.reporter.tracker.part = run.folder.name
            if (limit := sweep.context.limit) is not None:
                run.limit(run.recipe, limit.part(len(runs) - number))
            with suppress(Ended):
                fitted, search_problem, blocks = fit(run, inputs, problem, database)
                scores = own if fitted is inputs else OwnScores(run, fitted, opened)
                score = partial(scores.curve, search_problem, blocks) if opened else None
                summaries[run.folder.name] = make(run, fitted, search_problem, blocks, score=score)
                tell_models(run, summaries[run.folder.name])
    if summaries and parallel.is_main():
        write_text(folder / PAGE, sweep_page(_with_earlier(folder, summaries)))
    return summaries


def _with_earlier(folder: Path, summaries: Mapping[str, Summary]) -> dict[str, Summary]:
    """These and earlier sizes of a folder whose recipes differ in the budget alone, the largest first."""
    sizes = dict(summaries)
    for path in folder.glob(f"*/{FILE}"):
        with suppress(ArtifactError):  # of another version, or damaged: it has no row
            sizes.setdefault(path.parent.name, read_summary(path))
    shared = {**next(iter(summaries.values())).recipe, "budget": None}
    alike = {name: size for name, size in sizes.items() if {**size.recipe, "budget": None} == shared}
    return dict(sorted(alike.items(), key=lambda named: named[1].saved.params, reverse=True))


def member_name(budget: BudgetSettings) -> str:
    """Subfolder of a model: `keep-75`, `params-2.7B`, `bytes-4GiB`, `speedup-2x`, `latency-30ms`."""
    return f"{budget.kind}-{budget.bound.label()}"


def _ordered(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Recipes sorted by size, the largest first. Raises RecipeError."""
    kinds = {recipe.budget.kind for recipe in recipes}
    names = [member_name(recipe.budget) for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError(f"a sweep's budgets must differ; these are {', '.join(names)}")
    unsized = [recipe.model_copy(update={"budget": BudgetSettings()}) for recipe in recipes]
    if len(kinds) != 1 or any(recipe != unsized[0] for recipe in unsized):
        raise RecipeError("a sweep's recipes differ in their bound alone, which is of one kind")
    falling = recipes[0].budget.bound.falling
    return sorted(recipes, key=lambda recipe: recipe.budget.bound.value, reverse=not falling)
