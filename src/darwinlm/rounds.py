"""Several rounds of pruning: each one prunes and recovers the result of the previous round.

Database, search and refit of a round use its input model as reference. Recovery and the report always use the original
dense model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from darwinlm import __version__, parallel
from darwinlm.artifact import MARKER, write_json
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.run import Run
from darwinlm.surgery.stitch import block_parameters

FOLDER = "rounds"


def last_round(run: Run, run_stages: Callable[[Run, str], Any]) -> Run:
    """Run all rounds but the last, in subfolders, and return the last one.

    The last round is written to the run's folder. `run_stages` runs the stages of a round up to a given one. Raises
    DarwinLMError as in a run without rounds.
    """
    recipe = run.recipe
    original = run.checkpoint
    if parallel.is_main():
        write_json(run.folder / MARKER, {"made_by": "darwinlm", "version": __version__})
    dense = _block_parameters(original)
    model, kept = str(recipe.model), dense
    part = recipe.recovery.tokens // len(recipe.rounds)
    for number, share in enumerate(recipe.rounds[:-1]):
        run.reporter.say(f"round {number + 1} of {len(recipe.rounds)}: keep {share:.0%} of the original")
        folder = run.folder / FOLDER / str(number + 1)
        one = _round(run, _of_a_round(recipe, model, share * dense / kept, part), folder, number)
        run_stages(one, "export")
        model = str(folder / "model")
        kept = _block_parameters(Checkpoint.open(Path(model)))
    number = len(recipe.rounds) - 1
    run.reporter.say(f"round {number + 1} of {number + 1}: keep {recipe.rounds[-1]:.0%} of the original")
    return _round(run, _of_a_round(recipe, model, recipe.rounds[-1] * dense / kept, part), run.folder, number)


def _round(run: Run, recipe: Recipe, folder: Path, number: int) -> Run:
    """The run of one round, with the dense models of the whole run, and training text after that of earlier rounds."""
    one = Run(recipe, folder, run.reporter)
    one.skipped_tokens = number * (recipe.recovery.tokens // recipe.recovery.epochs)
    one.teacher = run.teacher
    if recipe.model == run.recipe.model:
        one.checkpoint = run.checkpoint
    return one


def _of_a_round(recipe: Recipe, model: str, keep: float, tokens: int) -> Recipe:
    """The recipe of one round, with its model, share, and number of training tokens."""
    changes = {
        "rounds": (),
        "vocabulary": None,
        "model": model,
        "teacher": recipe.teacher or recipe.model,
        "budget": recipe.budget.model_copy(update={"keep": keep}),
        "recovery": recipe.recovery.model_copy(update={"tokens": tokens}),
    }
    return recipe.model_copy(update=changes)


def _block_parameters(checkpoint: Checkpoint) -> int:
    return block_parameters(checkpoint.skeleton(), checkpoint.family.layers)
