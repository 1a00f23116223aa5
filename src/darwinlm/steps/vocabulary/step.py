"""Vocabulary: the dense model with fewer tokens, which is the dense model of all later stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.loading import check_tokens
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.recipe import Recipe
from darwinlm.recipe.recipe import TextSettings
from darwinlm.report.summary import VocabularyFigures
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.errors import DataError, RecipeError
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.text.packing import document_hash, token_ids
from darwinlm.steps.text.shares import shares_of
from darwinlm.steps.text.sources import read_domains
from darwinlm.steps.text.splits import purpose_of
from darwinlm.steps.text.text_source import TEXT_SETTINGS, check_source, given_source, text_key, with_own_text
from darwinlm.steps.vocabulary.choose import choose_tokens, kept_size
from darwinlm.steps.vocabulary.cut import cut_weights, special_numbers, write_tokenizer
from darwinlm.steps.vocabulary.spelling import measure_bits, measure_spelling
from darwinlm.steps.vocabulary.tokenizer_tree import TokenizerTree

CHARACTERS = 1 << 25
"""Maximum number of characters of text for the choice; tokens are counted at about a million characters per second."""
BATCH_DOCUMENTS = 512
"""Documents that are tokenised at once."""
CHARACTERS_PER_TOKEN = 3
"""Length of held-out passages, so that they fit into a sequence; SmolLM2's tokens have about 4.5."""
FIGURES = "figures.json"
ByDomain = dict[str, list[str]]


@dataclass(frozen=True)
class CutVocabulary:
    """The dense model with fewer tokens, and what that costs."""

    checkpoint: Checkpoint
    figures: VocabularyFigures


def _cut(task: Task, source: Checkpoint, own_text: Path | None) -> None:
    """Choose the tokens and write the smaller model."""
    tokenizer, folder = source.tokenizer(), task.folder / "model"
    check_source(given_source(task.recipe))
    texts, held_out = _documents(task.recipe, with_own_text(given_source(task.recipe), own_text), tokenizer)
    rows, tree = _choose(task.recipe, source, texts, tokenizer)
    cut_weights(source, rows, folder)
    write_tokenizer(tokenizer, tree, rows, folder)
    figures = _measure(task, source, Checkpoint.open(folder), rows, held_out)
    write_json(task.folder / FIGURES, figures.model_dump(mode="json"))
    task.context.reporter.say(
        f"vocabulary: {figures.tokens:,} of {figures.dense_tokens:,} tokens kept; held-out text takes "
        f"{figures.longer:.1%} more tokens"
    )


def _read(task: Task, source: Checkpoint) -> CutVocabulary:
    checkpoint = Checkpoint.open(task.folder / "model", source.source)
    return CutVocabulary(checkpoint, read_as(task.folder / FIGURES, VocabularyFigures))


VOCABULARY = Stage(
    "vocabulary",
    _cut,
    _read,
    version=4,
    writes="the dense model with fewer tokens, and what they cost",
    settings=("vocabulary", *TEXT_SETTINGS),
    key=lambda task, source: text_key(task, source, shares_of(task.recipe)),
    arithmetic=True,
)


def _documents(recipe: Recipe, source: str, tokenizer: Any) -> tuple[ByDomain, ByDomain]:
    """Documents for the choice, and held-out ones, by domain. Those for the evaluation are held out."""
    shares, seed = shares_of(recipe), recipe.text.seed
    texts: ByDomain = {}
    held_out: ByDomain = {}
    for domain, text in read_domains(source, CHARACTERS, seed=seed, tokenizer=tokenizer):
        held = purpose_of(document_hash(text), shares, seed) == "evaluation"
        (held_out if held else texts).setdefault(domain, []).append(text)
    if not texts or not held_out:
        raise DataError(
            f"text.source {source} has too few documents to choose tokens and to measure the choice: give more text, "
            "or leave out --vocab"
        )
    return texts, held_out


def _choose(recipe: Recipe, dense: Checkpoint, texts: ByDomain, tokenizer: Any) -> tuple[list[int], dict[str, Any]]:
    """Old numbers of the kept tokens in their new order, and the smaller tokenizer."""
    wanted = recipe.vocabulary
    assert wanted is not None
    tree = TokenizerTree(tokenizer, dense.source)
    if wanted > len(tree.tokens):
        raise RecipeError(
            f"vocabulary: {wanted:,.0f} tokens requested, but {dense.source} has {len(tree.tokens):,}: request fewer, "
            "or leave out --vocab"
        )
    size = kept_size(wanted, len(tree.tokens))
    always = tree.indispensable(tokenizer) | (special_numbers(dense) & tree.tokens.keys())
    check_tokens(max(*tokenizer.get_vocab().values(), *always), int(dense.config.vocab_size), dense.source)
    if len(always) > size:
        raise RecipeError(
            f"vocabulary: {size:,} tokens requested, but bytes, special tokens and the chat template need "
            f"{len(always):,}: request more"
        )
    documents = [text for of_domain in texts.values() for text in of_domain]
    uses: Counter[int] = Counter()
    for start in range(0, len(documents), BATCH_DOCUMENTS):
        for ids in token_ids(tokenizer, documents[start : start + BATCH_DOCUMENTS]):
            uses.update(ids)
    if uses.total() < size:
        raise DataError(
            f"text.source {recipe.text.source} has {uses.total():,} tokens, too few to choose {size:,} of "
            f"{len(tree.tokens):,}: give more text, or leave out --vocab"
        )
    paths = {token: tree.path(token) for token in tree.tokens}
    rows = tree.ordered(choose_tokens(uses, always, paths, size))
    return rows, tree.cut(rows)


def _measure(
    task: Task, dense: Checkpoint, small: Checkpoint, rows: Sequence[int], held_out: ByDomain
) -> VocabularyFigures:
    """What the smaller vocabulary costs, on held-out text."""
    whole, cut, context = dense.tokenizer(), small.tokenizer(), task.context
    domains = {name: asdict(measure_spelling(texts, whole, cut, rows)) for name, texts in held_out.items()}
    passages, memory = list(_passages(task.recipe.text, held_out)), HiddenMemory(task.folder)
    bits = {
        name: measure_bits(
            partial(StreamedDecoder, checkpoint, dtype=context.dtype, device=context.device),
            passages,
            tokenizer,
            batch_tokens=context.batch_tokens,
            progress=context.reporter.advance,
            memory=memory,
        )
        for name, checkpoint, tokenizer in (("dense_bits_per_byte", dense, whole), ("bits_per_byte", small, cut))
    }
    params = sum(parameter.numel() for parameter in dense.outline.parameters())
    fewer = sum(parameter.numel() for parameter in small.outline.parameters())
    return VocabularyFigures(
        tokens=len(rows),
        dense_tokens=len(whole.get_vocab()),
        params=fewer,
        dense_params=params,
        domains=domains,
        **bits,
    )


def _passages(settings: TextSettings, held_out: ByDomain) -> Iterator[str]:
    """Beginnings of held-out documents, of each domain in turn, in all as long as the evaluation text."""
    length = CHARACTERS_PER_TOKEN * settings.sequence_length
    left = CHARACTERS_PER_TOKEN * settings.evaluation_tokens
    for number in range(max(map(len, held_out.values()))):
        for texts in held_out.values():
            if number < len(texts) and left > 0:
                passage = texts[number][:length]
                left -= len(passage)
                yield passage
