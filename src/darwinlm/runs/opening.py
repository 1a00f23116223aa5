"""Runs of the pipeline, opened for a recipe: the model by its name here, nothing written over what is read."""

from __future__ import annotations

from pathlib import Path

from darwinlm.formats.resolve import is_here
from darwinlm.pipeline import ORDER
from darwinlm.recipe import Recipe
from darwinlm.runs.amount import fitted
from darwinlm.runtime import parallel
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.places import check_output
from darwinlm.runtime.run import Run


def open_run(
    recipe: Recipe,
    folder: Path,
    reporter: Reporter,
    *,
    parent: Run[Recipe] | None = None,
    until: str | None = None,
    begun: float | None = None,
) -> Run[Recipe]:
    """A run of this pipeline, with the other arguments of `Run`.

    The recipe's time limit counts from `begun`, on the monotonic clock, and is ignored without it. Raises ArtifactError
    if the run would write over its inputs, and as `Run`.
    """
    parallel.init_from_environment()
    with parallel.agree():
        if parallel.is_main():
            check_inputs(folder, recipe)
    named = named_here(recipe)
    run = Run(named, folder, reporter, parent=parent, order=ORDER, until=until)
    if parent is None and named.model != recipe.model:
        run.context.reporter.say(f"model: the folder {named.model}, not {recipe.model} of the hub")
    if begun is not None:
        run.limit(*fitted(run.recipe, folder, run.context.device, begun))
    return run


def check_inputs(folder: Path, recipe: Recipe) -> None:
    """Refuse to write over the models and the text that are read. Raises ArtifactError."""
    check_output(folder, (recipe.model,), (recipe.text.source, recipe.recovery.text))


def named_here(recipe: Recipe) -> Recipe:
    """The recipe with a model that is a folder here named as such: ./owner/name is no model of the hub."""
    is_local = recipe.model is not None and is_here(recipe.model)
    return recipe.model_copy(update={"model": f"./{recipe.model}"}) if is_local else recipe
