"""Text: read, split into disjoint purposes by document, cut into sequences of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.loading import check_tokens
from darwinlm.recipe import Recipe
from darwinlm.runtime.errors import DataError
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.recover.checks import check_length
from darwinlm.steps.text.records import listed
from darwinlm.steps.text.repeats import ordinary_tokens, with_repeats
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.shares import shares_of
from darwinlm.steps.text.sources import read_documents
from darwinlm.steps.text.splits import PURPOSES, TextTooShortError, shares_within, split_documents
from darwinlm.steps.text.text_source import TEXT_SETTINGS, check_source, given_source, text_key, with_own_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = dict[str, TokenSequences]


def text_stage(purposes: tuple[str, ...] = PURPOSES) -> Stage[[Checkpoint, Path | None], Texts]:
    """The stage that splits the text into disjoint purposes, in sequences of tokens.

    Its work raises DataError if the text is missing, empty, unreadable, too short, or belongs to a benchmark, and
    RecipeError if none is given, or its sequences are longer than the model allows.
    """

    def shares_in(task: Task) -> dict[str, int]:
        return {purpose: tokens for purpose, tokens in shares_of(task.recipe).items() if purpose in purposes}

    def work(task: Task, dense: Checkpoint, own_text: Path | None) -> None:
        settings, tokenizer = task.recipe.text, dense.tokenizer()
        source = with_own_text(given_source(task.recipe), own_text)
        sequences = _split(task, source, shares_in(task), tokenizer)
        ordinary = ordinary_tokens(tokenizer)
        for purpose, part in sequences.items():
            share = 0.0 if purpose == "evaluation" else settings.looking_back
            tokens = with_repeats(part.tokens, share=share, seed=settings.seed, ordinary=ordinary)
            replace(part, tokens=tokens).save(task.folder / purpose)

    def result(task: Task, dense: Checkpoint) -> Texts:
        texts = {purpose: TokenSequences.load(task.folder / purpose) for purpose in shares_in(task)}
        largest = max(int(part.tokens.max()) for part in texts.values())
        check_tokens(largest, int(dense.config.vocab_size), dense.source)
        return texts

    return Stage(
        "text",
        work,
        result,
        version=6,
        writes="sequences of tokens for each purpose",
        settings=(*TEXT_SETTINGS, "text.looking_back"),
        key=lambda task, dense: text_key(task, dense, shares_in(task)),
    )


TEXT = text_stage()


def check_text(recipe: Recipe, source: Checkpoint) -> None:
    """Refuse sequences that are too long for a model, and text of a benchmark. Raises RecipeError, DataError."""
    check_length(recipe.text.sequence_length, source)
    check_source(given_source(recipe))


def documents_of(text: Texts) -> tuple[str, ...]:
    """Hashes of all documents, on which recovery may not train."""
    return tuple(sorted({each for part in text.values() for each in part.document_hashes}))


def _split(
    task: Task, source: str, shares: dict[str, int], tokenizer: PreTrainedTokenizerBase
) -> dict[str, TokenSequences]:
    """Text for every purpose; a short text is divided in the recipe's proportions."""
    settings, wanted = task.recipe.text, shares
    while True:
        try:
            sequences = split_documents(
                read_documents(source, seed=settings.seed, tokenizer=tokenizer),
                shares,
                tokenizer,
                settings.sequence_length,
                settings.seed,
                source=source,
            )
        except TextTooShortError as error:
            if "training" in wanted:
                raise
            # Documents don't end at the borders of shares, and text beyond a share is lost to other purposes.
            available = min(error.available, sum(shares.values()) - settings.sequence_length)
            within = shares_within(wanted, available, settings.sequence_length)
            if within is None:
                raise DataError(
                    f"text.source {source} has {error.available:,} tokens, less than a sequence of "
                    f"{settings.sequence_length} for each of {listed(list(wanted))}: give more text, or lower "
                    "text.sequence_length"
                ) from error
            shares = within
            continue
        if shares != wanted:
            parts = ", ".join(f"{purpose} {part.tokens.numel():,}" for purpose, part in sequences.items())
            task.context.reporter.say(
                f"text: {source} is short. The recipe asks for {sum(wanted.values()):,} tokens and gets "
                f"{sum(part.tokens.numel() for part in sequences.values()):,} ({parts}). More text makes a better "
                "model."
            )
        return sequences
