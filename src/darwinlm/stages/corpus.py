"""The model's own text: written by the dense model where a recipe names `self` among its text sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from darwinlm.data import PURPOSES
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.sampling.corpus import write_corpus
from darwinlm.stages.text_source import SELF, named_parts, shares_of

SPARE, SPARE_BLOCKS = 1.15, 8
"""Factor and blocks above the tokens that are needed, because documents don't end at the borders of purposes."""
FIRST_FOR_RECOVERY = 1 << 20
"""Number of the first document that recovery trains on; those of a run for pruning are lower."""


def corpus_stage(name: str, title: str, first: int, needed: Callable[[Recipe], float]) -> Stage[Path | None]:
    """A stage that writes at least the `needed` tokens, and gives the folder of its files. None if none are needed."""

    def work(task: Task, original: Checkpoint) -> None:
        context, settings = task.context, task.recipe.text
        write_corpus(
            original.load(context.dtype, context.device),
            original.tokenizer(),
            task.folder,
            wanted(task.recipe),
            length=settings.sequence_length,
            seed=settings.seed,
            first=first,
            say=lambda message: context.reporter.say(f"{title}: {message}"),
            progress=context.reporter.advance,
        )

    def wanted(recipe: Recipe) -> int:
        least = needed(recipe)
        return int(SPARE * least) + SPARE_BLOCKS * recipe.text.sequence_length if least else 0

    return Stage(
        name,
        lambda task: task.folder,
        work=work,
        title=title,
        writes="text that the dense model writes itself, if a text is `self`",
        settings=("text.sequence_length", "text.seed"),
        key=lambda task, original: {"tokens": wanted(task.recipe)},
        arithmetic=True,
        together=True,
        wanted=wanted,
    )


def tokens_for(*purposes: str) -> Callable[[Recipe], float]:
    """The tokens of the model's own text that some purposes need under a recipe."""

    def needed(recipe: Recipe) -> float:
        tokens = sum(count for purpose, count in shares_of(recipe).items() if purpose in purposes)
        return tokens * _share(recipe.text.source)

    return needed


def _for_recovery(recipe: Recipe) -> float:
    settings = recipe.recovery
    return settings.tokens / settings.epochs * _share(settings.text or recipe.text.source)


def _share(source: str | None) -> float:
    """Share of the model's own text in a source."""
    parts = named_parts(source or "")
    return parts.count(SELF) / len(parts)


CORPUS = corpus_stage("corpus", "the model's own text", 0, tokens_for(*PURPOSES))
"""For all purposes but recovery."""
CORPUS_RECOVERY = corpus_stage(
    "corpus_recovery", "the model's own text for recovery", FIRST_FOR_RECOVERY, _for_recovery
)
"""For recovery, so that its amount changes nothing before it."""
