"""Text of all purposes: documents split between them, passages repeated in all but evaluation text, and openings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.openings import with_openings
from darwinlm.steps.text.records import listed
from darwinlm.steps.text.repeats import ordinary_tokens, with_repeats
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.source_words import OWN_TEXT, in_words, is_own_text
from darwinlm.steps.text.sources import read_documents
from darwinlm.steps.text.splits import TextTooShortError, shares_within, split_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from darwinlm.steps.text.text_settings import TextSettings

OPENED = ("calibration", "fitness")
"""Purposes of text that has openings."""


def prepare_text(
    source: str,
    shares: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
    settings: TextSettings,
    say: Callable[[str], object],
    *,
    openings: float = 0.0,
) -> dict[str, TokenSequences]:
    """Read a source and divide it: sequences for each purpose, with repeated passages, and a share of openings.

    Raises DataError if the text is missing, unreadable or too short.
    """
    sequences, ordinary = _split(source, shares, tokenizer, settings, say), ordinary_tokens(tokenizer)
    prepared: dict[str, TokenSequences] = {}
    for purpose, part in sequences.items():
        share = 0.0 if purpose == "evaluation" else settings.looking_back
        tokens = with_repeats(part.tokens, share=share, seed=settings.seed, ordinary=ordinary)
        if purpose in OPENED:
            tokens = with_openings(tokens, openings)
        prepared[purpose] = replace(part, tokens=tokens)
    return prepared


def _split(
    source: str,
    requested: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
    settings: TextSettings,
    say: Callable[[str], object],
) -> dict[str, TokenSequences]:
    """Text for every purpose; a short text is divided in the recipe's proportions."""
    shares, first = requested, None
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    while True:
        try:
            sequences = split_documents(
                read_documents(source, seed=settings.seed, tokenizer=tokenizer, say=say_once),
                shares,
                tokenizer,
                settings.sequence_length,
                settings.seed,
                source=source,
            )
        except TextTooShortError as error:
            if "training" in requested:
                raise
            first = first or error  # later ones are of smaller amounts
            # Documents don't end at the borders of shares, and text beyond a share is lost to other purposes.
            available = min(error.available, sum(shares.values()) - settings.sequence_length)
            within = shares_within(requested, available, settings.sequence_length)
            if within is None:
                raise _too_short(source, first, requested, settings.sequence_length) from error
            shares = within
            continue
        if shares != requested:
            parts = ", ".join(f"{purpose} {part.tokens.numel():,}" for purpose, part in sequences.items())
            say(_shorter(source, sum(requested.values()), sum(map(_tokens, sequences.values())), parts))
        return sequences


def _tokens(part: TokenSequences) -> int:
    return part.tokens.numel()


def _shorter(source: str, requested: int, got: int, parts: str) -> str:
    """What is said of a text that has fewer tokens than were asked for, but enough for every purpose."""
    if is_own_text(source):
        return f"text: {OWN_TEXT} has {got:,} of {requested:,} tokens ({parts}); the run goes on with these"
    return (
        f"text: {in_words(source)} is short. The recipe asks for {requested:,} tokens and gets {got:,} ({parts}). "
        "More text makes a better model."
    )


def _too_short(source: str, error: TextTooShortError, requested: Mapping[str, int], length: int) -> DataError:
    """The error for text of which not even a sequence of so many tokens is left for each purpose."""
    source, more = in_words(source), "give text with --text" if is_own_text(source) else "give more text"
    purposes = listed([purpose for purpose, tokens in requested.items() if tokens])
    count = sum(tokens > 0 for tokens in requested.values())
    if error.documents < count and error.available >= count * length:
        return DataError(
            f"text.source {source} has {error.documents} document{'s' * (error.documents != 1)}, but no document "
            f"serves two of {purposes}: {more}, or separate its documents (in a .txt file by two blank lines)"
        )
    return DataError(
        f"text.source {source} has {error.available:,} tokens, less than a sequence of {length} for each of "
        f"{purposes}: {more}, or lower text.sequence_length"
    )
