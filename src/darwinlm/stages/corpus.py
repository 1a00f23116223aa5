"""The model's own text: written by the dense model where a recipe names `self` among its text sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.needs.need import Need
from darwinlm.recipe import Recipe
from darwinlm.sampling.corpus import write_corpus
from darwinlm.sampling.sampler import CPU_ROWS, GPU_ROWS, MEMORY_SHARE
from darwinlm.stages.text_source import SELF, named_parts, shares_of
from darwinlm.text import PURPOSES

SPARE, SPARE_BLOCKS = 1.15, 8
"""Factor and blocks above the tokens that are needed, because documents don't end at the borders of purposes."""
FIRST_FOR_RECOVERY = 1 << 20
"""Number of the first document that recovery trains on; those of a run for pruning are lower."""
CHARACTERS_PER_TOKEN = 6.0
"""Bytes of a file of records for each token."""
DOCUMENTS = "documents"
"""Folder of the files in that of a stage."""
TIME_SHARE = 0.3
"""Share of a time limit after which text for pruning ends."""


def amount_for_pruning(recipe: Recipe, purposes: Collection[str] = PURPOSES) -> int:
    """Tokens of its own that the dense model writes for some purposes; 0 if the text isn't its own."""
    tokens = sum(count for purpose, count in shares_of(recipe).items() if purpose in purposes)
    return _amount(recipe, tokens, recipe.text.source)


def amount_for_recovery(recipe: Recipe) -> int:
    """Tokens of its own that the dense model writes for recovery; 0 if the text isn't its own."""
    settings = recipe.recovery
    return _amount(recipe, settings.tokens / settings.epochs, settings.text or recipe.text.source)


def _amount(recipe: Recipe, tokens: float, source: str | None) -> int:
    parts = named_parts(source or "")
    own = tokens * parts.count(SELF) / len(parts)
    return int(SPARE * own) + SPARE_BLOCKS * recipe.text.sequence_length if own else 0


def corpus_stage(
    name: str, title: str, amount: Callable[[Recipe], int], first: int = 0, share: float | None = None
) -> Stage[Path | None]:
    """A stage that writes an `amount` of tokens, and gives the folder of its files; None if the amount is 0.

    It ends early after a `share` of the recipe's time limit.
    """

    def work(task: Task, original: Checkpoint) -> None:
        context, recipe, begun = task.context, task.recipe, time.monotonic()
        seconds = None if recipe.time is None or share is None else 60 * share * recipe.time
        write_corpus(
            original.load(context.dtype, context.device),
            original.tokenizer(),
            task.folder / DOCUMENTS,
            amount(recipe),
            length=recipe.text.sequence_length,
            seed=recipe.text.seed,
            first=first,
            say=lambda message: context.reporter.say(f"{title}: {message}"),
            progress=context.reporter.advance,
            late=lambda: seconds is not None and time.monotonic() - begun > seconds,
        )

    def need_of(need: Need) -> None:
        """Each step reads all weights and adds a token to every row; rows are as many as fit, at least one."""
        sizes, rows = need.sizes, CPU_ROWS if need.on_cpu else GPU_ROWS
        need.tokens = amount(sizes.recipe)
        need.run(need.tokens, heads=1, batch=rows)
        heads = sum(shape.groups * shape.head_dim for shape in sizes.shapes if shape.kind == "attention")
        row = 2.0 * heads * sizes.recipe.text.sequence_length * sizes.size
        need.held = {"dense model": float(sizes.params * sizes.size)}
        room = MEMORY_SHARE * max(need.memory - need.device_bytes, 0.0)
        need.held["keys and values"] = max(min(rows * row, room), row)
        need.files(sizes.params * sizes.saved, CHARACTERS_PER_TOKEN * need.tokens)

    return Stage(
        name,
        lambda task: task.folder / DOCUMENTS,
        work=work,
        title=title,
        writes="text that the dense model writes itself, if a text is `self`",
        settings=("text.sequence_length", "text.seed"),
        key=lambda task, original: {"tokens": amount(task.recipe)},
        arithmetic=True,
        together=True,
        wanted=amount,
        need=need_of,
    )


CORPUS = corpus_stage("corpus", "the model's own text", amount_for_pruning, share=TIME_SHARE)
"""For all purposes but recovery."""
CORPUS_RECOVERY = corpus_stage(
    "corpus_recovery", "the model's own text for recovery", amount_for_recovery, FIRST_FOR_RECOVERY
)
"""For recovery, so that its amount changes nothing before it."""
