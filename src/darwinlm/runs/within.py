"""The smallest model that keeps a bound in quality: `darwinlm prune --within 2% --measure sciq`.

Sizes are tried by bisection, all from one database: each gets a short search and a refit, and is measured. The chosen
size then gets a run of its own, with the recipe's whole search and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from darwinlm import pipeline
from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.recipe import BudgetSettings, Recipe, load_recipe
from darwinlm.report.summary import FILE, Summary
from darwinlm.runs.bound import Scores, Within, check_beside
from darwinlm.runs.finished import read_summary
from darwinlm.runs.opening import open_run
from darwinlm.runs.own_scores import OwnScores
from darwinlm.runs.pruning import check_replaced
from darwinlm.runs.smallest import MIDDLE, MOST, Bracket, smallest
from darwinlm.runtime.amounts import percent
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError, BudgetError, RecipeError
from darwinlm.runtime.run import Run
from darwinlm.steps.budget.kinds import Keep
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.refit.step import Refit
from darwinlm.steps.results import Inputs

SIZES = "sizes"
"""Folder of the sizes that were tried, in that of the run."""
SHORT = load_recipe(None, (), {"preset": "quick"})
"""Its search and its refit are the most that a size gets that is tried."""


@dataclass(frozen=True)
class Tried:
    """A size that was tried."""

    keep: float
    params: int
    scores: Scores
    holds: bool


def prune_within(
    recipe: Recipe,
    folder: Path,
    within: Within,
    measures: Sequence[Measure],
    reporter: Reporter,
    *,
    overwrite: bool = False,
) -> Summary:
    """Find the size and prune the model to it. Rerunning resumes: sizes and scores that are there are reused.

    Raises RecipeError if the bound needs a measure and there is none, or no size keeps it; otherwise as `prune`.
    """
    check_beside(within, measured=bool(measures), timed=recipe.time is not None)
    if not overwrite:
        _check_replaced(recipe, folder, within)
    main = open_run(recipe, folder, reporter)
    inputs = pipeline.read_inputs(main, [(_short(main.recipe, MIDDLE), Refit.name)] * MOST)
    own = OwnScores(main, inputs, measures, within)
    own.check()
    judge = own.judge
    database = pipeline.build(main, inputs)

    def measure(keep: float) -> Tried | None:
        return _tried(main, inputs, database, own, keep)

    found = smallest(measure, lambda first, second: judge.tells_apart(first.scores, second.scores))
    tried = [(keep, probe) for keep, probe in found.tried if probe is not None]
    if found.passing is None:
        listed = "; ".join(f"{percent(keep)}: {_told(own, probe)}" for keep, probe in tried) or "none could be made"
        doubts = "".join(f"; {words.rstrip('.')}" for words in judge.remarks(tried[-1][1].scores)) if tried else ""
        raise RecipeError(
            f"--within {within.words}: no size below that of the whole model keeps it ({listed}){doubts}: allow more, "
            "give more items, or train the model"
        )
    keep = found.passing[0]
    reporter.say(f"within {within.words}: {percent(keep)} of the block parameters is the smallest size that was found")
    main.limit(_sized(main.recipe, keep), None)
    problem = pipeline.plan(main, inputs)
    points = [judge.point("tried", size, probe.params, probe.scores) for size, probe in tried]
    return pipeline.make(
        main,
        inputs,
        problem,
        database,
        score=lambda search, corrected: own.curve(
            problem, database, search, corrected, tried=points, ended=_ended(own, found)
        ),
    )


def _tried(main: Run[Recipe], inputs: Inputs, database: PruningDatabase, own: OwnScores, keep: float) -> Tried | None:
    """A size after a short search and the refit, measured; None if no model has that size."""
    reporter = main.context.reporter
    size = open_run(_short(main.recipe, keep), main.folder / SIZES / f"keep-{100 * keep:.10g}", reporter, parent=main)
    try:
        problem = pipeline.plan(size, inputs)
    except BudgetError as error:
        reporter.say(f"{percent(keep)} of the block parameters: {error}")
        return None
    search, stitched = pipeline.cut(size, inputs, problem, database)
    _, smaller = pipeline.refit(size, inputs, stitched)
    scores = own.scores(smaller)
    own.judge.check(scores)
    params = problem.space.params(search.allocation) + problem.outside
    probe = Tried(keep, params, scores, bool(own.judge.holds(scores)))
    verdict = "within the bound" if probe.holds else "outside"
    reporter.say(f"{percent(keep)} of the block parameters: {_told(own, probe)}: {verdict}")
    return probe


def _told(own: OwnScores, probe: Tried) -> str:
    """What a size keeps, in a few words."""
    point = own.judge.point("tried", probe.keep, probe.params, probe.scores)
    return ", ".join(
        f"{name} {score.value:.4f} nats" if own.nats else f"{name} keeps {percent(score.kept)} of the dense score"
        for name, score in point.scores.items()
    )


def _ended(own: OwnScores, found: Bracket[Tried]) -> str:
    """Why the bisection ended there."""
    assert found.passing is not None, "there is a size"
    keep, passing = found.passing
    if found.failing is None:
        return f"No smaller size than {percent(keep)} was tried." if len(found.tried) > 1 else ""
    less, failing = found.failing
    if not found.alike:
        return f"The next smaller size that was tried, {percent(less)}, is outside of the bound."
    needed = own.judge.needed(passing.scores, failing.scores)
    about = "" if needed is None else f"; about {needed:,} items would"
    return (
        f"The sizes between {percent(less)} and {percent(keep)} weren't tried, because these items don't tell the two "
        f"apart{about}."
    )


def _sized(recipe: Recipe, keep: float) -> Recipe:
    settings = {**dict(recipe.budget), "bound": Keep(value=keep)}
    return recipe.model_copy(update={"budget": BudgetSettings(**settings)})


def _short(recipe: Recipe, keep: float) -> Recipe:
    """The recipe of a size that is tried: a short search, a refit on less text, and no training.

    A longer search finds a better model, so the chosen size keeps the bound at least as well as when it was tried.
    """
    search, refit, quick = recipe.search, recipe.refit, SHORT.search
    amounts: dict[str, object] = {"generations": min(search.generations, quick.generations)}
    if quick.fitness_needed < search.fitness_needed and quick.rounds[0].survivors < search.offspring:
        amounts["rounds"] = quick.rounds
    return _sized(recipe, keep).model_copy(
        update={
            "search": search.model_copy(update=amounts),
            "refit": refit.model_copy(update={"tokens": min(refit.tokens, SHORT.refit.tokens)}),
            "recovery": RecoverySettings(),
        }
    )


def _check_replaced(recipe: Recipe, folder: Path, within: Within) -> None:
    """Refuse to replace a finished run of another model, or for another bound. Raises ArtifactError."""
    check_replaced(recipe, folder, "replace it with --overwrite", sized_by=("model", "vocabulary"))
    if not (folder / FILE).is_file():
        return
    made_for = None
    with suppress(ArtifactError):  # of another version
        curve = read_summary(folder / FILE).curve
        made_for = None if curve is None else curve.within
    if made_for != within.words:
        raise ArtifactError(
            f"{folder} holds a finished run {f'within {made_for}' if made_for else 'of a given size'}: choose another "
            "folder with --out, or replace it with --overwrite"
        )
