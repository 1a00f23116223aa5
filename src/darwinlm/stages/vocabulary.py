"""Vocabulary: the dense model with fewer tokens, which is the dense model of all later stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from darwinlm.data import Shuffle, check_not_evaluation_text, document_hash
from darwinlm.data.packing import token_ids
from darwinlm.data.sources import read_domains
from darwinlm.data.splits import purpose_of
from darwinlm.evaluation.spelling import measure_bits, measure_spelling
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.report.summary import VocabularyFigures
from darwinlm.run import Run
from darwinlm.runtime.artifact import digest_of, read_json, write_json
from darwinlm.runtime.errors import DataError, RecipeError
from darwinlm.stages.text import fingerprint, given_source, shares_of
from darwinlm.vocabulary.choose import choose_tokens, kept_size
from darwinlm.vocabulary.cut import check_whole, cut_weights, rows_in, special_numbers, write_tokenizer
from darwinlm.vocabulary.tokenizer import TokenizerTree

CHARACTERS = 1 << 25
"""Maximum number of characters of text for the choice; tokens are counted at about a million characters per second."""
BATCH_DOCUMENTS = 512
"""Documents that are tokenised at once."""
CHARACTERS_PER_TOKEN = 3
"""Length of held-out passages, so that they fit into a sequence; SmolLM2's tokens have about 4.5."""
FIGURES = "figures.json"
ByDomain = dict[str, list[str]]


def vocabulary_stage(run: Run) -> VocabularyFigures | None:
    """Cut the vocabulary of the run's models, if the recipe asks for it; they are then the smaller ones.

    Raises:
        ModelError: The tokenizer isn't of a known kind, or the teacher's tokens are others.
        RecipeError: The vocabulary is larger than the model's, or too small for bytes and special tokens.
        DataError: The text is missing or too short.
        CheckpointError: The smaller tokenizer doesn't agree with the whole one.
    """
    wanted = run.recipe.vocabulary
    if wanted is None or wanted == 1:
        return None
    dense, settings = run.checkpoint, run.recipe.text
    source = given_source(run)
    key = {
        "model": dense.digest,
        "tokenizer": digest_of(sorted(dense.tokenizer().get_vocab().items())),
        "wanted": wanted,
        "source": fingerprint(source),
        "shares": shares_of(run.recipe),
        "sequence_length": settings.sequence_length,
        "seed": run.recipe.search.seed,
        "arithmetic": run.arithmetic,
    }
    with run.stage("vocabulary", key, "vocabulary") as (stage, work):
        folder = stage.folder / "model"
        if work:
            tokenizer = dense.tokenizer()
            texts, held_out = _documents(run, source, tokenizer)
            rows, tree = _choose(run, texts, tokenizer)
            cut_weights(dense, rows, folder)
            write_tokenizer(tokenizer, tree, rows, folder)
            figures = _measure(run, Checkpoint.open(folder), rows, held_out)
            write_json(stage.folder / FIGURES, figures.model_dump(mode="json"))
            run.reporter.say(
                f"vocabulary: {figures.tokens:,} of {figures.dense_tokens:,} tokens kept; held-out text takes "
                f"{figures.longer:.1%} more tokens"
            )
    teacher = run.teacher
    run.checkpoint = Checkpoint.open(folder, dense.source)
    run.teacher = run.checkpoint if teacher is dense else with_vocabulary_of(run, teacher, run.checkpoint)
    return VocabularyFigures.model_validate(read_json(stage.folder / FIGURES))


def with_vocabulary_of(run: Run, dense: Checkpoint, small: Checkpoint) -> Checkpoint:
    """A dense model with the tokens of a smaller model; unchanged unless it has all of these and more rows."""
    tokenizers = small.tokenizer(), dense.tokenizer()
    rows = rows_in(*tokenizers, int(small.config.vocab_size), int(dense.config.vocab_size))
    if rows is None:
        return dense
    key = {"model": dense.digest, "rows": digest_of(rows)}
    with run.stage("vocabulary_teacher", key, "vocabulary of the dense model") as (stage, work):
        if work:
            cut_weights(dense, rows, stage.folder / "model")
            tokenizers[0].save_pretrained(stage.folder / "model")
    return Checkpoint.open(stage.folder / "model", dense.source)


def _documents(run: Run, source: str, tokenizer: Any) -> tuple[ByDomain, ByDomain]:
    """Documents for the choice, and held-out ones, by domain. Those for the evaluation are held out."""
    settings = run.recipe.text
    check_not_evaluation_text(source, allow_benchmark_text=settings.allow_benchmark_text)
    shares, seed = shares_of(run.recipe), run.recipe.search.seed
    texts: ByDomain = {}
    held_out: ByDomain = {}
    for domain, text in read_domains(source, CHARACTERS, shuffle=Shuffle(seed), tokenizer=tokenizer):
        held = purpose_of(document_hash(text), shares, seed) == "evaluation"
        (held_out if held else texts).setdefault(domain, []).append(text)
    if not texts or not held_out:
        raise DataError(
            f"text.source {source} has too few documents to choose tokens and to measure the choice: give more text, "
            "or leave out --vocab"
        )
    return texts, held_out


def _choose(run: Run, texts: ByDomain, tokenizer: Any) -> tuple[list[int], dict[str, Any]]:
    """Old numbers of the kept tokens in their new order, and the smaller tokenizer."""
    dense, wanted = run.checkpoint, run.recipe.vocabulary
    assert wanted is not None
    tree = TokenizerTree(tokenizer, dense.source)
    check_whole(dense.config, tokenizer, dense.source)
    if wanted > len(tree.tokens):
        raise RecipeError(
            f"vocabulary: {wanted:,.0f} tokens requested, but {dense.source} has {len(tree.tokens):,}: request fewer, "
            "or leave out --vocab"
        )
    size = kept_size(wanted, len(tree.tokens))
    always = tree.indispensable(tokenizer) | (special_numbers(dense) & tree.tokens.keys())
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
            f"text.source {run.recipe.text.source} has {uses.total():,} tokens, too few to choose {size:,} of "
            f"{len(tree.tokens):,}: give more text, or leave out --vocab"
        )
    paths = {token: tree.path(token) for token in tree.tokens}
    rows = tree.ordered(choose_tokens(uses, always, paths, size))
    return rows, tree.cut(rows)


def _measure(run: Run, small: Checkpoint, rows: Sequence[int], held_out: ByDomain) -> VocabularyFigures:
    """What the smaller vocabulary costs, on held-out text."""
    dense, whole, cut = run.checkpoint, run.checkpoint.tokenizer(), small.tokenizer()
    domains = {name: asdict(measure_spelling(texts, whole, cut, rows)) for name, texts in held_out.items()}
    model = dense.load(run.dtype, run.device)
    bits = measure_bits(model, list(_passages(run, held_out)), whole, cut, rows, run.reporter.advance)
    params = sum(parameter.numel() for parameter in model.parameters())
    fewer = sum(parameter.numel() for parameter in small.skeleton().parameters())
    return VocabularyFigures(
        tokens=len(rows),
        dense_tokens=len(whole.get_vocab()),
        params=fewer,
        dense_params=params,
        domains=domains,
        **bits,
    )


def _passages(run: Run, held_out: ByDomain) -> Iterator[str]:
    """Beginnings of held-out documents, of each domain in turn, in all as long as the evaluation text."""
    settings = run.recipe.text
    length = CHARACTERS_PER_TOKEN * settings.sequence_length
    left = CHARACTERS_PER_TOKEN * settings.evaluation_tokens
    for number in range(max(map(len, held_out.values()))):
        for texts in held_out.values():
            if number < len(texts) and left > 0:
                passage = texts[number][:length]
                left -= len(passage)
                yield passage
