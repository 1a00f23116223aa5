"""Scores: single-module losses, measured once for all budgets and all searches on one database."""

from __future__ import annotations

from typing import Any

from darwinlm import parallel
from darwinlm.artifact import StageFolder, damaged, read_json, write_json
from darwinlm.run import Run
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.predict.module_losses import Measured, level_losses, measure_levels
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Curves

SCORES = "scores.json"


class Scores:
    """Measured losses of a database's modules alone, kept in a stage folder.

    Attributes:
        measured: loss by "module:level".
        curves: loss of every level of every module.
    """

    def __init__(self, measured: Measured, errors: Curves, estimates: Curves | None) -> None:
        self.measured = measured
        self.curves = level_losses(errors, estimates, measured)


def scores_stage(
    run: Run,
    key: dict[str, Any],
    plan: Problem,
    errors: Curves,
    estimates: Curves | None,
    fitness: Fitness,
    n_levels: int,
) -> Scores:
    """Measure a few levels of every module, or reuse what was measured.

    Args:
        run: the run.
        key: what the losses depend on.
        plan: the space.
        errors: local error of every level of every module.
        estimates: estimated loss of every level, where the database has them.
        fitness: evaluates; its base becomes the dense model.
        n_levels: levels measured for each module.

    Raises:
        NumericsError: losses aren't finite.
        ArtifactError: the file is damaged.
    """
    settings = run.recipe.search
    key = {**key, "tokens": settings.score_tokens, "levels": n_levels}
    with run.stage("scores", key, "single-module losses", shared=True) as (stage, work):
        known = read_scores(stage, errors)
        if work:
            measure_levels(
                plan.space,
                errors,
                fitness,
                n_tokens=settings.score_tokens,
                n_levels=n_levels,
                known=known,
                progress=run.reporter.advance,
                save=lambda: _save(stage, known),
            )
    return Scores(known, errors, estimates)


def read_scores(stage: StageFolder, errors: Curves) -> Measured:
    """The losses in a stage's folder, those of an interrupted run included: what the first process reads.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = stage.folder / SCORES
    with parallel.agree():
        found = read_json(path) if parallel.is_main() and path.exists() else {}
    found = parallel.broadcast(found)
    try:
        known = {str(name): float(loss) for name, loss in found.items()}
        fits = all(0 <= int(level) < len(errors[int(index)]) for index, level in (name.split(":") for name in known))
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise damaged(path, f"it doesn't hold single-module losses: {error}") from error
    if not fits:
        raise damaged(path, "it holds levels that the model doesn't have")
    return known


def _save(stage: StageFolder, known: Measured) -> None:
    if parallel.is_main():
        write_json(stage.folder / SCORES, known)
