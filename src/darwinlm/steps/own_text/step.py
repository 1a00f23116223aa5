"""The model's own text: written by the dense model where a recipe names `self` among its text sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.own_text.written import write_own_text
from darwinlm.steps.source.step import load_whole
from darwinlm.steps.text.shares import amount_for_pruning, amount_for_recovery

FIRST_FOR_RECOVERY = 1 << 20
"""Number of the first document that recovery trains on; those of a run for pruning are lower."""
DOCUMENTS = "documents"
"""Folder of the files in that of a stage."""
TIME_SHARE = 0.3
"""Share of a time limit after which text for pruning ends."""


def own_text_stage(
    name: str, title: str, amount: Callable[[Recipe], int], first: int = 0, share: float | None = None
) -> Stage[[Checkpoint], Path]:
    """A stage that writes an `amount` of tokens, and gives the folder of its files.

    It ends early after a `share` of the run's time limit.
    """

    def work(task: Task, original: Checkpoint) -> None:
        context, recipe, begun = task.context, task.recipe, working_time()
        seconds = math.inf if share is None or context.limit is None else share * context.limit.seconds
        write_own_text(
            load_whole(task, original),
            original.tokenizer(),
            task.folder / DOCUMENTS,
            amount(recipe),
            length=recipe.text.sequence_length,
            seed=recipe.text.seed,
            first=first,
            say=lambda message: context.reporter.say(f"{title}: {message}"),
            progress=context.reporter.advance,
            late=lambda: working_time() - begun > seconds,
        )

    return Stage(
        name,
        work,
        lambda task: task.folder / DOCUMENTS,
        title=title,
        writes="text that the dense model writes itself, if a text is `self`",
        settings=("text.sequence_length", "text.seed"),
        key=lambda task: {"tokens": amount(task.recipe)},
        arithmetic=True,
        together=True,
    )


OWN_TEXT = own_text_stage("own_text", "the model's own text", amount_for_pruning, share=TIME_SHARE)
"""For all purposes but recovery."""
OWN_TEXT_RECOVERY = own_text_stage(
    "own_text_recovery", "the model's own text for recovery", amount_for_recovery, FIRST_FOR_RECOVERY
)
"""For recovery, so that its amount changes nothing before it."""
