"""How the texts of a model that reads become its inputs: from its files, and from the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from darwinlm.model.families.sentence_transformers import answers_in, check_widths, is_cross_encoder, messages_of
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.objective.scores import Scores
from darwinlm.model.quantisation import in_gguf
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import DataError, RecipeError
from darwinlm.runtime.limits import shorten
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.search.search_amounts import SearchAmounts
from darwinlm.steps.text.encoder import DOCUMENT, QUERY, ItemEncoder
from darwinlm.steps.text.samples import Sample
from darwinlm.steps.text.shares import SELF, named_parts
from darwinlm.steps.text.text_settings import answer_words
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.runtime.sections import Sections
    from darwinlm.steps.text.text_settings import TextSettings


def encoder_of(model: Checkpoint, settings: TextSettings) -> ItemEncoder:
    """What makes the inputs of a model. Raises ModelError, CheckpointError, and DataError for prompts without room."""
    prompts, default = model.prompts()
    encoder = ItemEncoder(
        model.tokenizer(),
        length_of(model, settings),
        settings.template,
        prompts,
        default,
        apart=model.family.ending == "states",
        messages=messages_of(model.folder),
    )
    for prompt in encoder.used_prompts():
        tokens = len(encoder.tokenizer(prompt, verbose=False)["input_ids"])
        if tokens >= encoder.length:
            raise DataError(
                f"the prompt '{shorten(prompt, 40)}' of {model.source} takes {tokens:,} tokens, but inputs are cut to "
                f"{encoder.length:,}, so that nothing of a text would be read: "
                + (
                    "raise text.sequence_length"
                    if encoder.length == settings.sequence_length
                    else "use a model whose max_seq_length leaves room for texts"
                )
            )
    return encoder


def length_of(model: Checkpoint, settings: TextSettings) -> int:
    """Tokens in a sequence: the recipe's, but no more than a model that reads takes of a text."""
    longest = model.longest_input if objective_of(model).reads else None
    return min(settings.sequence_length, longest or settings.sequence_length)


def with_answers(model: Checkpoint, settings: TextSettings) -> Checkpoint:
    """The model with the tokens that it answers with, if it is a language model that judges texts.

    They are those of the recipe, or of its files. Raises RecipeError.
    """
    if model.family.ending != "language":
        if settings.answers is not None:
            raise RecipeError(
                f"--answers is for language models that judge texts, but {model.source} gives "
                f"{objective_of(model).words()}: leave it out"
            )
        return model
    if settings.answers is None:
        answers = answers_in(model.folder)
        if answers and max(answers) >= int(model.config.vocab_size):
            raise RecipeError(
                f"{model.source} has {model.config.vocab_size:,} tokens, and none of the number {max(answers)} with "
                "which its files say that it answers: give the answers, such as --answers yes,no"
            )
    else:
        answers = answer_tokens(settings.answers, model.tokenizer())
    return replace(model, answers=answers) if answers else model


def answer_tokens(words: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of two answers such as `yes,no`. Raises RecipeError if one isn't a single token."""
    tokens = []
    for word in answer_words(words):
        forms = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in (word, f" {word}")]
        single = next((ids[0] for ids in forms if len(ids) == 1), None)
        if single is None:
            raise RecipeError(
                f"text.answers: '{word}' is {len(forms[0])} tokens of this model, but an answer must be a single one: "
                "give words that the model was trained to answer with, such as yes,no"
            )
        tokens.append(int(single))
    if len({*tokens}) < len(tokens):
        raise RecipeError(
            f"text.answers: '{words}' are one token of this model, so its answers couldn't differ: give two words that "
            "are different tokens"
        )
    return tuple(tokens)


def check_reading(model: Checkpoint, settings: TextSettings) -> None:
    """Refuse text that a model can't be pruned with. Raises RecipeError, and CheckpointError for its pooling."""
    objective = objective_of(model)
    if not objective.reads:
        if settings.template is not None:
            raise RecipeError(
                f"text.template is for models that judge pairs, and {model.source} writes text: give --answers yes,no "
                "if it answers with these words, or leave the template out"
            )
        return
    check_widths(model.folder, int(model.config.hidden_size))
    if model.family.ending == "states" and is_cross_encoder(model.folder):
        raise RecipeError(
            f"{model.source} is a reranker whose head is a module of sentence-transformers, which isn't known here: "
            "known are classes for sequence classification, and language models that answer"
        )
    if settings.template is not None:
        _check_template(model, settings.template)
    if not settings.source or SELF in named_parts(settings.source):
        raise RecipeError(
            f"{model.source} gives {objective.words()} and can't write the text for its own pruning: name texts or "
            "pairs that it is used on, such as --text pairs.jsonl with lines like "
            '{"query": "...", "document": "..."}, or --text reviews.csv#text'
        )


def _check_template(model: Checkpoint, template: str) -> None:
    if model.family.ending == "states":
        raise RecipeError(
            f"text.template puts a query and a document together, but {model.source} is an embedder, which reads each "
            "alone, with the prompts of its folder: leave it out"
        )
    if DOCUMENT not in template:
        raise RecipeError("text.template has no {document}, where the text goes: add it, and {query} for pairs")
    unknown = [name for name in re.findall(r"{\w+}", template) if name not in (QUERY, DOCUMENT)]
    if unknown:
        raise RecipeError(
            f"text.template has {unknown[0]}, but only {QUERY} and {DOCUMENT} are filled in: write there what "
            f"{unknown[0]} stands for"
        )


def with_known_labels(samples: Iterable[Sample], model: Checkpoint) -> Iterator[Sample]:
    """The samples. Raises DataError for a label that a classifier doesn't have."""
    objective = objective_of(model)
    classified = isinstance(objective, Scores) and objective.labels == "one"
    count = 2 if model.answers else int(getattr(model.config, "num_labels", 0))
    for sample in samples:
        if classified and sample.label is not None and sample.label not in range(count):
            raise DataError(
                f"the text '{shorten(sample.text, 40)}' has the label {sample.label:g}, but the model has the labels 0 "
                f"to {count - 1}: correct the labels, or leave their field out"
            )
        yield sample


def check_reader(model: Checkpoint, recipe: Sections) -> None:
    """Refuse what isn't done for models that read texts one by one, or for the others. Raises RecipeError."""
    objective = objective_of(model)
    if not objective.reads and not recipe.section(SearchAmounts).narrows:
        raise RecipeError(
            f"--layers first is for models that read (rerankers, classifiers, embedders, and language models with "
            f"--answers), and {model.source} writes text, of which its first layers alone keep next to nothing: "
            "leave --layers out, or choose equal"
        )
    if model.family.bidirectional and recipe.section(VocabularySettings).cut:
        raise RecipeError(f"--vocab can't cut the tokens of an encoder yet, which {model.source} is: leave it out")
    if objective.reads and recipe.section(VocabularySettings).auto:
        raise RecipeError(
            f"--vocab auto compares bits per byte of text, and {model.source} gives {objective.words()}: say how many "
            "tokens are kept, such as --vocab 50%"
        )
    if objective.reads and recipe.section(BudgetSettings).kind == "file":
        raise RecipeError(
            f"budget.file is for models that write, and {model.source} gives {objective.words()}: choose --keep, "
            "--params, --bytes or --speedup, and see the sizes of its GGUF files in the report"
        )
    if model.family.bidirectional and in_gguf(recipe.section(UnitsSettings).quantisation):
        raise RecipeError(
            f"--for {recipe.section(UnitsSettings).quantisation} prepares a GGUF file, and none is written of an "
            f"encoder such as {model.source}: leave it out"
        )


def kind_of(model: Checkpoint) -> str | None:
    """What a model that reads is, and what tells so, in a line; None for a model that writes."""
    objective = objective_of(model)
    if not objective.reads:
        return None
    if model.answers:
        what, because = "a language model that judges texts", "its answers are given"
    elif model.family.ending == "states":
        what, because = "an embedder", "its files are those of a model without a head"
    else:
        labels = int(model.config.num_labels)
        what = "a reranker or regressor with one score" if labels == 1 else f"a classifier with {labels} labels"
        if isinstance(objective, Scores) and objective.labels == "numbers":
            what = f"a regressor with {labels} scores"
        because = "its config.json names a class for sequence classification"
    return f"{model.source} is {what} ({because}): {objective.words()} is kept"
