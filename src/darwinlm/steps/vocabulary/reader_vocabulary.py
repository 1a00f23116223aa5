"""The vocabulary of a model that reads texts one by one: chosen by its inputs, and measured by what it gives for them.

The model with fewer tokens reads the same held-out texts as the whole one, each spelt in its own tokens, so that its
scores or embeddings tell what the smaller vocabulary costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.items import ids
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import DataError
from darwinlm.steps.evaluate.item_quality import outputs_for, quality_of
from darwinlm.steps.evaluate.model_figures import main_score
from darwinlm.steps.text.item_sequences import Item, in_order, items_of, labels_of
from darwinlm.steps.text.packing import document_hash
from darwinlm.steps.text.reading import encoder_of, with_answers, with_known_labels
from darwinlm.steps.text.samples import Sample, read_samples
from darwinlm.steps.text.source_words import in_words
from darwinlm.steps.text.splits import purpose_of
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.cut_vocabulary import CHARACTERS, EVALUATION, scripts_of, write_model
from darwinlm.steps.vocabulary.scripts import losses
from darwinlm.steps.vocabulary.spelling import measure_spelling
from darwinlm.steps.vocabulary.token_choice import ModelTokens
from darwinlm.steps.vocabulary.vocabulary_figures import GivenFigures, VocabularyFigures

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.objective.item_objective import ItemObjective
    from darwinlm.steps.text.encoder import ItemEncoder


@dataclass(frozen=True)
class Samples:
    """Samples of a source: those that choose the tokens, and those that are held out from the choice."""

    chosen_from: list[Sample]
    held_out: list[Sample]


def cut_reader_vocabulary(
    dense: Checkpoint,
    keep: float,
    source: str,
    shares: Mapping[str, int],
    settings: TextSettings,
    folder: Path,
    context: Context,
) -> VocabularyFigures:
    """As `cut_vocabulary`, for a model that reads.

    Tokens are chosen by their uses in the model's inputs, with prompts and templates. Such a model predicts no text, so
    its expectations don't count.
    """
    vocabulary = ModelTokens.of(dense)
    size = vocabulary.size(keep)
    samples = _divided(
        with_known_labels(read_samples(source, seed=settings.seed), dense), source, shares, settings.seed
    )
    encoder = encoder_of(dense, settings)
    choice = vocabulary.choice(vocabulary.counted(item.tokens for item in _items(samples.chosen_from, encoder)))
    rows = choice.rows(size)
    small = with_answers(write_model(dense, choice, rows, folder), settings)
    figures = VocabularyFigures(
        tokens=len(rows),
        dense_tokens=len(vocabulary.tokenizer.get_vocab()),
        params=sum(parameter.numel() for parameter in small.outline.parameters()),
        dense_params=sum(parameter.numel() for parameter in dense.outline.parameters()),
        domains={
            in_words(source): measure_spelling(_texts(samples.held_out), vocabulary.tokenizer, small.tokenizer(), rows)
        },
        given=_measure(dense, small, samples.held_out, settings, folder, context),
        scripts=scripts_of(vocabulary, rows),
    )
    for clause in losses(figures.scripts):
        context.reporter.say(f"vocabulary: {clause}")
    return figures


def count_inputs(
    model: Checkpoint, tokens: ModelTokens, source: str, settings: TextSettings, characters: int
) -> Mapping[int, float]:
    """Uses of each token in a model's inputs, of about so many characters of a source. Raises DataError."""
    samples = _limited(with_known_labels(read_samples(source, seed=settings.seed), model), characters)
    return tokens.counted(item.tokens for item in _items(samples, encoder_of(model, settings)))


def _divided(samples: Iterable[Sample], source: str, shares: Mapping[str, int], seed: int) -> Samples:
    """Samples by purpose: those with the same query have one. Raises DataError if a part has none."""
    divided = Samples([], [])
    for sample in _limited(samples):
        held_out = purpose_of(document_hash(sample.key), shares, seed) == EVALUATION
        (divided.held_out if held_out else divided.chosen_from).append(sample)
    if not divided.chosen_from or not divided.held_out:
        raise DataError(
            f"text.source {in_words(source)} has too few texts or pairs to choose tokens and to measure the choice: "
            "give more text, or leave out --vocab"
        )
    return divided


def _limited(samples: Iterable[Sample], characters: int = CHARACTERS) -> Iterator[Sample]:
    """The first samples, with about so many characters."""
    read = 0
    for sample in samples:
        read += len(sample.text) + len(sample.query or "")
        yield sample
        if read > characters:
            return


def _items(samples: Iterable[Sample], encoder: ItemEncoder) -> Iterator[Item]:
    """The inputs of a model for samples."""
    groups: dict[str, int] = {}
    for sample in samples:
        yield from items_of(sample, encoder, groups)


def _texts(samples: Iterable[Sample]) -> list[str]:
    """Queries and texts, each once."""
    return list(dict.fromkeys(text for sample in samples for text in (sample.query, sample.text) if text))


def _measure(
    dense: Checkpoint, small: Checkpoint, held_out: list[Sample], settings: TextSettings, folder: Path, context: Context
) -> GivenFigures:
    """What the two models give for held-out samples, about as many tokens of them as an evaluation reads."""
    objective = cast("ItemObjective", objective_of(dense))
    items = _first(list(_items(held_out, encoder_of(dense, settings))), settings.evaluation_tokens)
    other = list(_items(held_out, encoder_of(small, settings)))[: len(items)]
    memory = HiddenMemory(folder)

    def outputs_of(checkpoint: Checkpoint, inputs: list[Item]) -> Tensor:
        tokens = in_order(inputs, max(len(item.tokens) for item in inputs))
        decoder = StreamedDecoder(checkpoint, ids(tokens), dtype=context.dtype, device=context.device)
        own = cast("ItemObjective", objective_of(checkpoint))
        return outputs_for(decoder, own, tokens, batch_tokens=context.batch_tokens, memory=memory)

    before, after = outputs_of(dense, items), outputs_of(small, other)
    quality = quality_of(objective, after, before, labels_of(items))
    return GivenFigures(texts=len(items), values=dict(quality.values), score=main_score(quality.reading))


def _first(items: list[Item], tokens: int) -> list[Item]:
    """The first items, at least one, with about so many tokens."""
    sizes = torch.tensor([len(item.tokens) for item in items]).cumsum(0)
    return items[: max(int((sizes <= tokens).sum()), 1)]
