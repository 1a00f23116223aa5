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
from darwinlm.run import Run
from darwinlm.surgery.stitch import block_parameters

FOLDER = "rounds"


def last_round(run: Run, run_stages: Callable[[Run, str], Any]) -> Run:
    """Run all rounds but the last, in subfolders, and return the last one.

    The last round is written to the run's folder. `run_stages` runs the stages of a round up to a given one. Raises
    DarwinLMError as in a run without rounds.
    """
    recipe = run.recipe
    if parallel.is_main():
        write_json(run.folder / MARKER, {"made_by": "darwinlm", "version": __version__})
    dense = _block_parameters(run.checkpoint)
    model, kept = str(recipe.model), dense
    *earlier, last = recipe.rounds
    for number, share in enumerate(earlier):
        folder = run.folder / FOLDER / str(number + 1)
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
