"""Texts and pairs as a model reads them: its prompts, its template, its special tokens, and its longest input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darwinlm.runtime.errors import DataError, ModelError, first_line
from darwinlm.runtime.limits import shorten
from darwinlm.steps.text.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUERY, DOCUMENT = "{query}", "{document}"
QUERY_PROMPTS, DOCUMENT_PROMPTS = ("query",), ("document", "passage", "text", "corpus")
"""Names of prompts for queries and for the texts that are searched, in order of preference."""


@dataclass(frozen=True)
class ItemEncoder:
    """Makes the tokens of texts and pairs.

    Attributes:
        length: Most tokens of a text.
        template: Text with {query} and {document} in which a pair is put; None joins them as the tokenizer does.
        prompts: Prompts in front of texts, by name.
        default: Name of the prompt of texts that aren't queries; None for the one of documents, if there is one.
        apart: Whether the query and the text of a pair are two inputs, as of an embedder.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    template: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    apart: bool = False

    def query(self, sample: Sample) -> list[int]:
        """Tokens of the query of a pair, as an input of its own."""
        assert sample.query is not None
        return self._one(self._prompt(QUERY_PROMPTS), sample.query)

    def text(self, sample: Sample) -> list[int]:
        """Tokens of a text, or of a pair as one input. Raises DataError, ModelError."""
        if sample.query is None or self.apart:
            if self.template is not None and not self.apart:
                if QUERY in self.template:
                    raise DataError(
                        "text.template takes a {query}, but the text has none: give pairs, with the fields query and "
                        "document"
                    )
                return self._in_template("", sample.text)
            return self._one(self._prompt(DOCUMENT_PROMPTS), sample.text)
        if self.template is not None:
            return self._in_template(sample.query, sample.text)
        if self.tokenizer.chat_template and (rendered := self._rendered(sample)) is not None:
            return rendered
        prompt = self._prompt(())
        return self._ids(prompt + sample.query, sample.text)

    def _prompt(self, names: tuple[str, ...]) -> str:
        names = (*names, *([self.default] if self.default else ()))
        return next((self.prompts[name] for name in names if name in self.prompts), "")

    def _one(self, prompt: str, text: str) -> list[int]:
        return self._ids(prompt + text)

    def _ids(self, *texts: str) -> list[int]:
        """Tokens with the special ones that the tokenizer adds; the longer part is truncated."""
        strategy = "longest_first" if len(texts) > 1 else True
        encoded = self.tokenizer(*texts, truncation=strategy, max_length=self.length, verbose=False)
        tokens: list[int] = encoded["input_ids"]
        return tokens

    def _in_template(self, query: str, text: str) -> list[int]:
        template = self.template
        assert template is not None
        return self._fitted(lambda part: template.replace(QUERY, query).replace(DOCUMENT, part), text)

    def _rendered(self, sample: Sample) -> list[int] | None:
        """Tokens by a chat template for the roles `query` and `document`; None if it has none of these."""
        template = self.tokenizer.chat_template
        if not isinstance(template, str) or "query" not in template or "document" not in template:
            return None

        def render(text: str) -> str:
            roles = [{"role": "query", "content": sample.query or ""}, {"role": "document", "content": text}]
            try:
                return str(self.tokenizer.apply_chat_template(roles, tokenize=False))
            except Exception as error:  # a template is a program; it may raise anything
                raise ModelError(
                    f"the model's chat template can't be applied to a query and a document ({first_line(error)}): give "
                    "a template with {query} and {document} as text.template in a recipe"
                ) from error

        return self._fitted(render, sample.text)

    def _fitted(self, render: Callable[[str], str], text: str) -> list[int]:
        """Tokens of a rendered pair, whose text is shortened until it fits: the words behind it stay."""
        while True:
            tokens: list[int] = self.tokenizer(render(text), verbose=False)["input_ids"]
            excess = len(tokens) - self.length
            if excess <= 0:
                return tokens
            if not text:
                raise DataError(
                    f"a query of {len(tokens)} tokens with its template doesn't fit into sequences of {self.length} "
                    f"tokens ({shorten(render(''), 80)}): raise text.sequence_length"
                )
            own = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            text = text[: int(len(text) * max(own - excess, 0) / max(own, 1))]
