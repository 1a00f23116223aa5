"""Texts and pairs, as a model reads them, with which a written file is compared; and how a server makes such inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from darwinlm.formats.inputs import DOCUMENT, QUERY, Inputs, added_tokens
from darwinlm.formats.logits_check import TEXT
from darwinlm.model.objective.chosen import objective_of
from darwinlm.steps.text.encoder import DOCUMENT_PROMPTS, QUERY_PROMPTS, ItemEncoder
from darwinlm.steps.text.reading import encoder_of
from darwinlm.steps.text.samples import Sample

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.text.text_settings import TextSettings

QUESTIONS = ("When does the ferry leave?", "Who repairs the radio mast?", "How much is a ticket for a child?")
ENDPOINT = "llama-server's /embeddings takes finished texts, and tokens"


def check_inputs(model: Checkpoint, settings: TextSettings) -> Inputs | None:
    """Inputs of a model that reads, in its own template and of its length; None for a model that writes.

    Raises ModelError, DataError, CheckpointError.
    """
    if not objective_of(model).reads:
        return None
    encoder = encoder_of(model, settings)
    sentences = TEXT.split(". ")
    texts = [*(f"{sentence}." for sentence in sentences[:5]), TEXT]
    alone = encoder.apart or (encoder.template is not None and QUERY not in encoder.template)
    if not alone:
        pairs = [(question, text) for text in texts for question in QUESTIONS[: 1 if text is TEXT else 2]]
        tokens = [encoder.text(Sample(*pair)) for pair in pairs]
        return _pairs(encoder, pairs, tokens)
    tokens = [encoder.text(Sample(None, text)) for text in texts]
    remarks = _prompts(encoder) if encoder.apart else ()
    given: list[tuple[str | None, str]] = [(None, text) for text in texts]
    if encoder.apart:
        tokens += [encoder.query(Sample(question, "")) for question in QUESTIONS]
        given += [(None, question) for question in QUESTIONS]
    plain = encoder.apart and encoder.messages is None and not any(encoder.prompts.values())
    # Only plain texts are what a server makes of them by itself.
    whole = tuple(plain and len(one) < encoder.length for one in tokens)
    return Inputs(tuple(map(tuple, tokens)), tuple(given), whole, remarks=remarks)


def _pairs(encoder: ItemEncoder, pairs: Sequence[tuple[str, str]], tokens: Sequence[Sequence[int]]) -> Inputs:
    """Pairs with the template that makes their tokens, if there is one."""
    whole = tuple(len(one) < encoder.length for one in tokens)
    inputs = Inputs(tuple(map(tuple, tokens)), tuple(pairs), whole)
    split = encoder.tokenizer
    begin, end = added_tokens(split, split("a", verbose=False)["input_ids"])
    ids = [[split(part, add_special_tokens=False, verbose=False)["input_ids"] for part in pair] for pair in pairs]
    joined = [[*begin, *query, *end, *text, *end] for query, text in ids]
    if _same(joined, inputs):
        return inputs
    template = str(split.decode(encoder.text(Sample(QUERY, DOCUMENT)), clean_up_tokenization_spaces=False))
    if template.count(QUERY) == template.count(DOCUMENT) == 1:
        filled = Inputs(inputs.tokens, inputs.pairs, whole, template)
        texts = map(filled.filled, range(len(pairs)))
        if _same([split(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts], filled):
            return filled
    remark = (
        f"no template makes the pairs that the model reads, so a server's /rerank would score other texts: {ENDPOINT}"
    )
    return Inputs(inputs.tokens, inputs.pairs, tuple(False for _ in whole), remarks=(remark,))


def _same(made: Sequence[Sequence[int]], inputs: Inputs) -> bool:
    """Whether these are the tokens of all inputs that aren't cut, of which there are some."""
    compared = [[*one] == [*own] for one, own, whole in zip(made, inputs.tokens, inputs.whole, strict=True) if whole]
    return any(compared) and all(compared)


def _prompts(encoder: ItemEncoder) -> tuple[str, ...]:
    """What a server must be told of an embedder's prompts, or of its chat template."""
    if encoder.messages is not None:
        text = str(encoder.tokenizer.decode(encoder.text(Sample(None, DOCUMENT)), clean_up_tokenization_spaces=False))
        return (f"the model reads texts in its chat template, which a server doesn't apply: send it {text!r}",)
    found = {"queries": encoder.prompt(QUERY_PROMPTS), "texts": encoder.prompt(DOCUMENT_PROMPTS)}
    said = [f"{prompt!r} in front of {what}" for what, prompt in found.items() if prompt]
    return (f"a server adds no prompts: put {' and '.join(said)}",) if said else ()
