"""Runs whose figures go to an experiment tracker while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from darwinlm.recipe import Recipe
from darwinlm.report.summary import Summary
from darwinlm.runtime import parallel
from darwinlm.runtime.output import mark
from darwinlm.runtime.run import Run
from darwinlm.runtime.tracking import start_tracker


@contextmanager
def tracked(run: Run[Recipe], name: str | None) -> Iterator[None]:
    """Send the figures of a run to a tracker, from the first of its processes; None sends none.

    Raises RecipeError in all processes if the tracker can't be started.
    """
    reporter = run.context.reporter
    if name is None:
        yield
        return
    with parallel.agree():
        if parallel.is_main():
            mark(run.folder)  # some trackers write into it
            reporter.tracker = start_tracker(name, run.folder, run.recipe.model_dump(mode="json"), reporter.say)
    failed = True
    try:
        yield
        failed = False
    finally:
        if reporter.tracker is not None:
            reporter.tracker.finish(failed=failed)
            reporter.tracker = None


def tell_models(run: Run[Recipe], summary: Summary) -> None:
    """Send the figures of the measured models, as the page's table has them. Raises StorageError."""
    tracker = run.context.reporter.tracker
    if tracker is None:
        return
    for key, model in summary.models.items():
        figures = {name: value for name, value in model.metrics.items() if value is not None}
        tracker.log_result(f"models/{summary.name(key)}", figures)
