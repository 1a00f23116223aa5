"""The choice of tokens for a text, the model without the others, and what that costs on held-out text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.loading import check_tokens
from darwinlm.model.surgery.fewer_tokens import cut_weights, special_numbers, write_tokenizer
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import DataError, RecipeError
from darwinlm.steps.text.packing import document_hash, token_ids
from darwinlm.steps.text.sources import read_domains
from darwinlm.steps.text.splits import purpose_of
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.choose import choose_tokens, kept_size
from darwinlm.steps.vocabulary.spelling import measure_bits, measure_spelling
from darwinlm.steps.vocabulary.tokenizer_tree import TokenizerJson, TokenizerTree
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS = 1 << 25
"""Maximum number of characters of text for the choice; tokens are counted at about a million characters per second."""
BATCH_DOCUMENTS = 512
"""Documents that are tokenised at once."""
CHARACTERS_PER_TOKEN = 3
"""Length of held-out passages, so that they fit into a sequence; SmolLM2's tokens have about 4.5."""
ByDomain = dict[str, list[str]]
"""Documents by the file or data set that they come from."""


def cut_vocabulary(
    dense: Checkpoint,
    keep: float,
    source: str,
    shares: Mapping[str, int],
    settings: TextSettings,
    folder: Path,
    context: Context,
) -> VocabularyFigures:
    """Choose the tokens that a text uses most, write the model without the others, and measure it.

    Args:
        dense: The model.
        keep: Tokens to keep, as a share of all or a number.
        source: Source of the text.
        shares: Tokens of the run's text by purpose; documents for the evaluation are held out from the choice.
        settings: Length of sequences, amount of evaluation text, and seed.
        folder: Where the model is written, in `model`.
        context: Device and element type of the passes.

    Raises DataError if the text has too few documents, RecipeError if there are fewer tokens or more must stay.
    """
    tokenizer = dense.tokenizer()
    texts, held_out = _documents(source, shares, settings.seed, tokenizer)
    rows, tree = _choose(keep, dense, texts, tokenizer)
    cut_weights(dense, rows, folder / "model")
    write_tokenizer(tokenizer, tree, rows, folder / "model")
    return _measure(context, settings, dense, Checkpoint.open(folder / "model"), rows, held_out, folder)


def _documents(
    source: str, shares: Mapping[str, int], seed: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[ByDomain, ByDomain]:
    """Documents for the choice, and held-out ones, by domain. Those for the evaluation are held out."""
    texts: ByDomain = {}
    held_out: ByDomain = {}
    for domain, text in read_domains(source, CHARACTERS, seed=seed, tokenizer=tokenizer):
        purpose = purpose_of(document_hash(text), shares, seed)
        documents = held_out if purpose == "evaluation" else texts
        documents.setdefault(domain, []).append(text)
    if not texts or not held_out:
        raise DataError(
            f"text.source {source} has too few documents to choose tokens and to measure the choice: give more text, "
            "or leave out --vocab"
        )
    return texts, held_out


def _choose(
    keep: float, dense: Checkpoint, texts: ByDomain, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], TokenizerJson]:
    """Old numbers of the kept tokens in their new order, and the smaller tokenizer."""
    tree = TokenizerTree(tokenizer, dense.source)
    if keep > len(tree.tokens):
        raise RecipeError(
            f"vocabulary: {keep:,.0f} tokens requested, but {dense.source} has {len(tree.tokens):,}: request fewer, "
            "or leave out --vocab"
        )
    size = kept_size(keep, len(tree.tokens))
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
    paths = {token: tree.path(token) for token in tree.tokens}
    rows = tree.ordered(choose_tokens(uses, always, paths, size))
    return rows, tree.cut(rows)


def _measure(
    context: Context,
    settings: TextSettings,
    dense: Checkpoint,
    small: Checkpoint,
    rows: Sequence[int],
    held_out: ByDomain,
    folder: Path,
) -> VocabularyFigures:
    """What the smaller vocabulary costs, on held-out text."""
    tokenizer, cut = dense.tokenizer(), small.tokenizer()
    domains = {name: measure_spelling(texts, tokenizer, cut, rows) for name, texts in held_out.items()}
    passages, memory = list(_passages(settings, held_out)), HiddenMemory(folder)

    def bits_of(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> float:
        return measure_bits(
            partial(StreamedDecoder, checkpoint, dtype=context.dtype, device=context.device),
            passages,
            tokenizer,
            batch_tokens=context.batch_tokens,
            progress=context.reporter.advance,
            memory=memory,
        )

    return VocabularyFigures(
        tokens=len(rows),
        dense_tokens=len(tokenizer.get_vocab()),
        params=sum(parameter.numel() for parameter in small.outline.parameters()),
        dense_params=sum(parameter.numel() for parameter in dense.outline.parameters()),
        domains=domains,
        dense_bits_per_byte=bits_of(dense, tokenizer),
        bits_per_byte=bits_of(small, cut),
    )


def _passages(settings: TextSettings, held_out: ByDomain) -> Iterator[str]:
    """Beginnings of held-out documents, from each domain in turn; together they are as long as the evaluation text."""
    length = CHARACTERS_PER_TOKEN * settings.sequence_length
    remaining = CHARACTERS_PER_TOKEN * settings.evaluation_tokens
    for number in range(max(map(len, held_out.values()))):
        for texts in held_out.values():
            if number < len(texts) and remaining > 0:
                passage = texts[number][:length]
                remaining -= len(passage)
                yield passage
