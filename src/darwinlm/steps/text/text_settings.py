"""Settings of the text."""

from __future__ import annotations

from pydantic import Field, field_validator

from darwinlm.runtime.quantities import Repeats, Seed, Share, Whole
from darwinlm.runtime.section import Section

LEAST_FOR_ANSWERS = 4096
"""Evaluation tokens from which chat models are compared on their answers too."""


def answer_words(answers: str) -> list[str]:
    """The words of `yes,no`."""
    return [word.strip() for word in answers.split(",")]


class TextSettings(Section):
    """Text for calibration, search, training and evaluation; the parts are disjoint by document."""

    source: str | None = "self"
    """`self`: text that the dense model writes itself, chats if it has a chat template. Or a local .txt, .md, .html,
    .jsonl, .json, .csv or .parquet file or program code, a folder of them, or `hf:owner/name[:config][@split]`. A field
    with the text or a chat can follow: `#field`, `#question+answer`. Several sources, separated by commas, give equal
    parts."""
    sequence_length: Repeats = Field(512, ge=8)
    """Length in tokens of the sequences into which the text is cut."""
    looking_back: Share = Field(0.2, ge=0, le=0.5)
    """Share of tokens that repeat earlier passages of the same sequence, in all text except evaluation text, so that
    the smaller model still uses its context. 0 turns repetition off."""
    openings: Share = Field(0.0625, ge=0, le=0.5)
    """Share of the tokens of the pruning and of the search that begin short texts of their own, so that the smaller
    model keeps what it does with the first token of a text. None where every text begins with the bos token, and in
    models with learned sinks or linear attention. 0 turns this off."""
    calibration_tokens: Whole = Field(32768, gt=0)
    """Tokens that are run through the model to see which parts matter, and for the refit; more make a better model. An
    eighth of them, at most 8192, also gives gradients of the loss. As many as an eighth, at most 65,536, are set aside
    for choices that must not use the fitted text, such as the strength of the refit."""
    evaluation_tokens: Whole = Field(6144, gt=0)
    """Tokens for the figures in the report; no choice depends on them. From 4096 on, chat models are compared on a
    quarter as many tokens of their answers too."""
    answers: str | None = None
    """Two words, such as yes,no, with which a language model answers whether a text fits a query, the one that means
    yes first. Their probabilities are then what is kept. None takes those in the model's files, if there are any."""
    template: str | None = None
    """Text with {query} and {document} in which a pair is put, as in the model's training. None takes the chat template
    if it has these roles, or joins the two as the tokenizer does. For models that give scores."""
    seed: Seed = 0
    """Seed of the order of the documents, their split by purpose, and the repeated passages."""

    @field_validator("answers")
    @classmethod
    def _two_words(cls, answers: str | None) -> str | None:
        words = [] if answers is None else answer_words(answers)
        if answers is not None and (len(words) != 2 or not all(words) or words[0] == words[1]):
            raise ValueError("must be two words such as yes,no, the one that means yes first")
        return answers

    @field_validator("answers", "template")
    @classmethod
    def _in_unicode(cls, words: str | None) -> str | None:
        """A command line may hold bytes that are no text."""
        try:
            (words or "").encode()
        except UnicodeEncodeError:
            raise ValueError("must be text in UTF-8") from None
        return words

    @property
    def validation_tokens(self) -> int:
        """Tokens for choices that must not use the fitted text."""
        return max(1, min(self.calibration_tokens // 8, 65536))

    @property
    def answer_tokens(self) -> int:
        """Tokens of a chat model's own answers on which smaller models are compared with it; none for short runs."""
        return self.evaluation_tokens // 4 if self.evaluation_tokens >= LEAST_FOR_ANSWERS else 0
