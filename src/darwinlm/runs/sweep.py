"""A sweep: several budgets from one database; each search may start from the neighbouring result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from darwinlm.pipeline import STAGES, run_stages
from darwinlm.planning.time_limit import TimeLimit
from darwinlm.recipe import BudgetSettings, Recipe
from darwinlm.report.plots import size_plot
from darwinlm.report.summary import Summary
from darwinlm.report.sweep import HEADINGS, SweepSummary, sweep_cells, sweep_page
from darwinlm.run import Run
from darwinlm.runtime import parallel, tables
from darwinlm.runtime.artifact import write_json, write_text
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import RecipeError

SHARED = ("source", "vocabulary", "vocabulary_teacher", "text", "latency", "saliency", "database")
"""Stages that runs with different budgets share."""

SWEEP = "sweep"
PAGE = "index.html"


def prune_sweep(
    recipes: Sequence[Recipe],
    out: str | Path,
    *,
    until: str = "report",
    reporter: Reporter | None = None,
    begun: float | None = None,
) -> SweepSummary:
    """Prune a model to several sizes, the largest first, with the same text, database and scores.

    `darwinlm prune --keep 75%,50%` calls this.

    Args:
        recipes: Recipes that differ only in their bound, which is of the same kind. `darwinlm.load_recipes` returns
            them for a bound with several values, such as `load_recipes(None, ["model=MODEL", "budget.keep=75%,50%"])`.
        out: Output folder; each model has a subfolder, such as `keep-75`.
        until: Last stage as in `run_stages`.
        reporter: Receiver of progress; None prints to the terminal.
        begun: Start of the recipes' time limit, `time.monotonic()`; None is now. The models share the limit.

    Returns the contents of sweep.json: a row for each model, the dense one first; no rows if the last stage isn't the
    report. Raises DarwinLMError.
    """
    folder = Path(out).expanduser()
    ordered = _ordered(recipes)
    whole = Run(ordered[0], folder, reporter or Reporter())  # refuses a foreign folder, and locks it to the end
    summaries: list[tuple[str, Summary]] = []
    neighbour, limit = None, TimeLimit.of(ordered[0], runs=len(ordered), begun=begun)
    shared = {stage: whole.path(stage) for stage in SHARED}
    for recipe in ordered:
        name = member_name(recipe.budget)
        whole.reporter.say(name)
        run = Run(recipe, folder / name, whole.reporter, elsewhere=shared)
        results = run_stages(run, until, neighbour=neighbour, limit=limit)
        if STAGES.index(until) >= STAGES.index("search"):
            neighbour = results.search.allocation
        if until == "report":
            summaries.append((name, results.report))
    if not summaries:
        return SweepSummary()
    sweep = SweepSummary.of(summaries)
    if parallel.is_main():
        write_json(folder / f"{SWEEP}.json", sweep.as_json())
        write_text(folder / f"{SWEEP}.md", tables.markdown(HEADINGS, sweep_cells(sweep)))
        write_text(folder / f"{SWEEP}.svg", size_plot(sweep.rows))
        write_text(folder / PAGE, sweep_page(sweep, summaries[0][1]))
    return sweep


def member_name(budget: BudgetSettings) -> str:
    """Subfolder of a model: `keep-75`, `params-2.7B`, `bytes-4GiB`, `speedup-2x`, `latency-30ms`."""
    bound = getattr(budget, budget.kind)
    if budget.kind == "keep":
        return f"keep-{100 * bound:.10g}"
    if budget.kind == "speedup":
        return f"speedup-{bound:.10g}x"
    if budget.kind == "latency":
        return f"latency-{1000 * bound:.10g}ms"
    steps = [(1024**power, f"{letter}iB") for power, letter in ((3, "G"), (2, "M"), (1, "K"))]
    if budget.kind == "params":
        steps = [(10**9, "B"), (10**6, "M"), (10**3, "k")]
    size, unit = next(((size, unit) for size, unit in steps if bound >= size), (1, ""))
    return f"{budget.kind}-{bound / size:.10g}{unit}"


def _ordered(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Recipes sorted by size, the largest first. Raises RecipeError."""
    kinds = {recipe.budget.kind for recipe in recipes}
    if len(kinds) != 1:
        raise RecipeError("a sweep has budgets of one kind; these are " + (" and ".join(sorted(kinds)) or "none"))
    names = [member_name(recipe.budget) for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError(f"a sweep's budgets must differ; these are {', '.join(names)}")
    plain = {"budget": BudgetSettings()}
    if any(recipe.model_copy(update=plain) != recipes[0].model_copy(update=plain) for recipe in recipes):
        raise RecipeError("a sweep's recipes may only differ in their bound")
    kind = recipes[0].budget.kind
    return sorted(recipes, key=lambda recipe: getattr(recipe.budget, kind), reverse=kind != "speedup")
