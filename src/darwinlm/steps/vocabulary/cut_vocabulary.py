"""The model without the tokens that a text uses least, and what that costs on held-out text."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.surgery.fewer_tokens import cut_weights, write_tokenizer
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.packing import document_hash, token_ids
from darwinlm.steps.text.source_words import in_words
from darwinlm.steps.text.sources import read_domains
from darwinlm.steps.text.splits import purpose_of
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.predicted_uses import predicted_uses
from darwinlm.steps.vocabulary.scripts import ScriptFigures, losses, script_figures
from darwinlm.steps.vocabulary.spelling import measure_bits, measure_spelling
from darwinlm.steps.vocabulary.token_choice import ModelTokens, TokenChoice
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS = 1 << 25
"""Maximum number of characters of text for the choice; tokens are counted at about a million characters per second."""
PREDICTED_TOKENS = 8192
"""Tokens of the text at which the model's predictions are added up."""
CHARACTERS_PER_TOKEN = 3
"""Length of held-out passages, so that they fit into a sequence; SmolLM2's tokens have about 4.5."""
EVALUATION, VALIDATION = "evaluation", "validation"
ByDomain = dict[str, list[str]]
"""Documents by the file or data set that they come from."""


@dataclass(frozen=True)
class Documents:
    """Documents of a source: those that choose the tokens, and held-out ones by purpose."""

    chosen_from: ByDomain
    held_out: Mapping[str, ByDomain]

    def all(self) -> Iterator[str]:
        """The documents that choose the tokens."""
        for documents in self.chosen_from.values():
            yield from documents


def read_documents(
    source: str,
    shares: Mapping[str, int],
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    purposes: Collection[str] = (EVALUATION,),
) -> Documents:
    """Read a source, and hold out the documents of some purposes. Raises DataError if a part has no document."""
    texts: ByDomain = {}
    held_out: dict[str, ByDomain] = {purpose: {} for purpose in purposes}
    for domain, text in read_domains(source, CHARACTERS, seed=seed, tokenizer=tokenizer):
        purpose = purpose_of(document_hash(text), shares, seed)
        held_out.get(purpose, texts).setdefault(domain, []).append(text)
    if not texts or not all(held_out.values()):
        raise DataError(
            f"text.source {in_words(source)} has too few documents to choose tokens and to measure the choice: give "
            "more text, or leave out --vocab"
        )
    return Documents(texts, held_out)


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
    vocabulary = ModelTokens.of(dense)
    size = vocabulary.size(keep)
    documents = read_documents(source, shares, settings.seed, vocabulary.tokenizer)
    choice = choice_for(vocabulary, dense, documents, settings, folder, context)
    return write_cut(dense, choice, choice.rows(size), documents, settings, folder, context)


def choice_for(
    vocabulary: ModelTokens,
    dense: Checkpoint,
    documents: Documents,
    settings: TextSettings,
    folder: Path,
    context: Context,
) -> TokenChoice:
    """The choice of tokens for documents; streams of the model that reads some of them may go into `folder`."""
    ids = token_ids(
        vocabulary.tokenizer, [*passages_of(documents.chosen_from, settings.sequence_length, PREDICTED_TOKENS)]
    )
    sequences = [torch.tensor(sequence[: settings.sequence_length]) for sequence in ids if sequence]
    tokens = pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    predicted = predicted_uses(
        StreamedDecoder(dense, torch.unique(tokens), dtype=context.dtype, device=context.device),
        tokens,
        torch.arange(tokens.shape[1])[None] < lengths[:, None],
        batch_tokens=context.batch_tokens,
        memory=HiddenMemory(folder),
        progress=context.reporter.advance,
    )
    return vocabulary.used_by(documents.all(), predicted)


def write_cut(
    dense: Checkpoint,
    choice: TokenChoice,
    rows: Sequence[int],
    documents: Documents,
    settings: TextSettings,
    folder: Path,
    context: Context,
) -> VocabularyFigures:
    """Write the model with the tokens `rows` alone into `folder`, and measure it on documents for the evaluation."""
    small = write_model(dense, choice, rows, folder)
    figures = _measure(context, settings, dense, small, rows, documents.held_out[EVALUATION], folder)
    figures = figures.model_copy(update={"scripts": scripts_of(choice.vocabulary, rows)})
    for clause in losses(figures.scripts):
        context.reporter.say(f"vocabulary: {clause}")
    return figures


def write_model(dense: Checkpoint, choice: TokenChoice, rows: Sequence[int], folder: Path) -> Checkpoint:
    """Write the model with the tokens `rows` alone into `folder`, and open it."""
    cut_weights(dense, rows, folder / "model")
    write_tokenizer(choice.vocabulary.tokenizer, choice.vocabulary.tree.cut(rows), rows, folder / "model")
    return Checkpoint.open(folder / "model")


def scripts_of(vocabulary: ModelTokens, rows: Sequence[int]) -> dict[str, ScriptFigures]:
    """What the smaller vocabulary keeps of each script; `rows` are the old numbers of its tokens."""
    tree, kept = vocabulary.tree, set(rows)
    model = Tokenizer.from_str(json.dumps(tree.cut(rows))).model
    spelt = {number: len(model.tokenize(token)) for number, token in tree.tokens.items() if number not in kept}
    return script_figures({number: tree.text(number) for number in tree.tokens}, kept, spelt)


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
    passages = list(passages_of(held_out, settings.sequence_length, settings.evaluation_tokens))
    memory = HiddenMemory(folder)

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


def passages_of(documents: ByDomain, length: int, tokens: int) -> Iterator[str]:
    """Beginnings of documents, from each domain in turn.

    Each has at most `length` tokens, and all together about `tokens`, at `CHARACTERS_PER_TOKEN`.
    """
    characters, remaining = CHARACTERS_PER_TOKEN * length, CHARACTERS_PER_TOKEN * tokens
    for number in range(max(map(len, documents.values()))):
        for texts in documents.values():
            if number < len(texts) and remaining > 0:
                passage = texts[number][:characters]
                remaining -= len(passage)
                yield passage
