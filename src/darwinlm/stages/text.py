"""Text: read, split into disjoint purposes by document, cut into blocks of tokens."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.data import (
    PURPOSES,
    Shuffle,
    TokenBlocks,
    assert_disjoint,
    check_not_evaluation_text,
    read_documents,
    split_documents,
)
from darwinlm.data.files import Tally
from darwinlm.data.looking_back import ordinary_tokens, with_repeats
from darwinlm.data.packing import added_bos
from darwinlm.data.records import listed
from darwinlm.data.sources import LocalSource, parse_source
from darwinlm.data.splits import TextTooShortError, shares_within
from darwinlm.recipe import Recipe
from darwinlm.recovery.checks import check_length
from darwinlm.run import Run
from darwinlm.runtime.artifact import digest_of, file_digest
from darwinlm.runtime.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = dict[str, TokenBlocks]


def text_stage(run: Run, purposes: tuple[str, ...] = PURPOSES) -> Texts:
    """Blocks of tokens for calibration, fitness, validation, evaluation and, if needed, training.

    Raises:
        DataError: The text is missing, empty, unreadable, too short, or belongs to a benchmark.
        RecipeError: No text is given, or its blocks are longer than the model allows.
    """
    settings, source = run.recipe.text, given_source(run)
    check_length(settings.sequence_length, run.checkpoint)
    check_not_evaluation_text(source, allow_benchmark_text=settings.allow_benchmark_text)
    shares = {purpose: tokens for purpose, tokens in shares_of(run.recipe).items() if purpose in purposes}
    tokenizer = run.checkpoint.tokenizer()
    key = {
        "source": fingerprint(source),
        "tokenizer": _tokenizer_digest(tokenizer),
        "shares": shares,
        "sequence_length": settings.sequence_length,
        "seed": run.recipe.search.seed,
        "blocks_begin_with": added_bos(tokenizer),
    }
    if tokenizer.chat_template:
        key["chat_template"] = digest_of(tokenizer.chat_template)
    if settings.looking_back:
        key["looking_back"] = settings.looking_back
    with run.stage("text", key, "text") as (stage, work):
        if work:
            blocks, tally = _split(run, source, shares, tokenizer)
            assert_disjoint(blocks)
            if (left_out := tally.words()) is not None:
                run.reporter.say(f"text: {left_out}")
            ordinary = ordinary_tokens(tokenizer)
            for purpose, part in blocks.items():
                tokens = with_repeats(
                    part.tokens,
                    share=0.0 if purpose == "evaluation" else settings.looking_back,
                    seed=run.recipe.search.seed,
                    ordinary=ordinary,
                )
                replace(part, tokens=tokens).save(stage.folder / purpose)
        texts = {purpose: TokenBlocks.load(stage.folder / purpose) for purpose in shares}
    vocabulary = int(run.checkpoint.config.vocab_size)
    largest = max(int(part.tokens.max()) for part in texts.values())
    if largest >= vocabulary:
        raise DataError(
            f"the tokenizer of {run.checkpoint.source} gives the token {largest}, but the model's vocabulary ends at "
            f"{vocabulary - 1}: it belongs to another model"
        )
    return texts


def given_source(run: Run) -> str:
    """Source of the run's text. Raises RecipeError if there is none."""
    if not run.recipe.text.source:
        raise RecipeError("text.source: no text is given; name a file, a folder, or hf:owner/name")
    return run.recipe.text.source


def shares_of(recipe: Recipe) -> dict[str, int]:
    """Number of tokens for each purpose."""
    settings, training = recipe.text, recipe.search.training_needed
    shares = {
        "calibration": settings.calibration_tokens,
        "fitness": recipe.search.fitness_needed,
        "validation": settings.validation_tokens,
        "evaluation": settings.evaluation_tokens,
    }
    return {**shares, "training": training} if training else shares


def _split(
    run: Run, source: str, shares: dict[str, int], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, TokenBlocks], Tally]:
    """Text for every purpose, and a count of what was left out; a short text is divided in the recipe's proportions.

    Raises:
        DataError: There is less than a block for each purpose, or too little for training candidates.
    """
    settings, wanted = run.recipe.text, shares
    while True:
        tally = Tally()
        try:
            blocks = split_documents(
                read_documents(source, shuffle=Shuffle(run.recipe.search.seed), tokenizer=tokenizer, tally=tally),
                shares,
                tokenizer,
                settings.sequence_length,
                run.recipe.search.seed,
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
                    f"text.source {source} has {error.available:,} tokens, less than a block of "
                    f"{settings.sequence_length} for each of {listed(list(wanted))}: give more text, or lower "
                    "text.sequence_length"
                ) from error
            shares = within
            continue
        if shares != wanted:
            parts = ", ".join(f"{purpose} {part.tokens.numel():,}" for purpose, part in blocks.items())
            run.reporter.say(
                f"text: {source} is short. The recipe asks for {sum(wanted.values()):,} tokens and gets "
                f"{sum(part.tokens.numel() for part in blocks.values()):,} ({parts}). More text makes a better model."
            )
        return blocks, tally


def fingerprint(source: str) -> dict[str, object]:
    """Identity of a source for keys: hashes of local files, or the name of a data set of the hub."""
    parsed = parse_source(source)
    if not isinstance(parsed, LocalSource):
        return {"hub": source}
    root = parsed.path if parsed.path.is_dir() else parsed.path.parent
    files = {str(Path(file).relative_to(root)): file_digest(file) for file in parsed.files()}
    return {"files": files, "field": parsed.field}


def _tokenizer_digest(tokenizer: object) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.blake2b(backend.to_str().encode(), digest_size=16).hexdigest()
    return digest_of(sorted(tokenizer.get_vocab().items()))  # type: ignore[attr-defined]
