"""Texts and pairs as a model reads them: its prompts, its template, its special tokens, and its longest input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darwinlm.model.families.sentence_transformers import Messages
from darwinlm.runtime.errors import DataError, ModelError, first_line
from darwinlm.runtime.limits import shorten
from darwinlm.steps.text.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUERY, DOCUMENT = "{query}", "{document}"
QUERY_PROMPTS, DOCUMENT_PROMPTS = ("query",), ("document", "passage", "text", "corpus")
"""Names of prompts for queries and for the texts that are searched, in order of preference."""
FILLERS = ("0", "1 2 3 4")
"""Texts that share no token: what their renderings have in common is the template's."""


@dataclass(frozen=True)
class ItemEncoder:
    """Makes the tokens of texts and pairs.

    Attributes:
        length: Most tokens of a text.
        template: Text with {query} and {document} in which a pair is put; None joins them as the tokenizer does.
        prompts: Prompts in front of texts, by name.
        default: Name of the prompt of texts that aren't queries; None for the one of documents, if there is one.
        apart: Whether the query and the text of a pair are two inputs, as of an embedder.
        messages: How texts are put in the tokenizer's chat template, as sentence-transformers does it: a pair in the
            roles `query` and `document`, another text in that of the user, a prompt in that of the system. None for
            models that read plain texts.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    template: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    apart: bool = False
    messages: Messages | None = None

    def query(self, sample: Sample) -> list[int]:
        """Tokens of the query of a pair, as an input of its own."""
        assert sample.query is not None
        return self._one(self.prompt(QUERY_PROMPTS), sample.query)

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
            return self._one(self.prompt(DOCUMENT_PROMPTS), sample.text)
        if self.template is not None:
            if QUERY not in self.template:
                raise DataError(
                    "text.template has no {query}, but the text is pairs: add it, or name the field of the texts "
                    "alone, as in pairs.jsonl#document"
                )
            return self._in_template(sample.query, sample.text)
        prompt, pair = self.prompt(()), [("query", sample.query), ("document", sample.text)]
        if self.messages is not None:
            return self._in_messages(self.messages, prompt, pair)
        if self._has_roles():
            return self._in_messages(Messages(), "", pair)
        return self._ids(prompt + sample.query, sample.text)

    def used_prompts(self) -> set[str]:
        """The prompts that stand in front of inputs."""
        names = (QUERY_PROMPTS, DOCUMENT_PROMPTS) if self.apart else ((), DOCUMENT_PROMPTS)
        return {self.prompt(of_kind) for of_kind in names} - {""}

    def prompt(self, names: tuple[str, ...]) -> str:
        """The prompt with one of these names, or the default one; empty without."""
        names = (*names, *([self.default] if self.default else ()))
        return next((self.prompts[name] for name in names if name in self.prompts), "")

    def _one(self, prompt: str, text: str) -> list[int]:
        if self.messages is not None:
            return self._in_messages(self.messages, prompt, [("user", text)])
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

    def _has_roles(self) -> bool:
        """Whether the chat template of a plain folder is for the roles `query` and `document`."""
        template = self.tokenizer.chat_template
        return isinstance(template, str) and "query" in template and "document" in template

    def _in_messages(self, messages: Messages, prompt: str, texts: list[tuple[str, str]]) -> list[int]:
        """Tokens of texts by role in the chat template; the last one is shortened."""
        *first, (role, last) = [("system", prompt), *texts] if prompt else texts

        def render(text: str) -> str:
            said = [messages.message(*one) for one in (*first, (role, text))]
            try:
                return str(self.tokenizer.apply_chat_template(said, tokenize=False, **messages.arguments))
            except Exception as error:  # a template is a program; it may raise anything
                raise ModelError(
                    f"the model's chat template can't be applied to {' and '.join(name for name, _ in texts)} "
                    f"({first_line(error)}): give a template with {{query}} and {{document}} as text.template in a "
                    "recipe"
                ) from error

        if last and render(last) == render(""):
            raise ModelError(
                f"the model's chat template leaves out the message of the {role}: give a template with {{query}} and "
                "{document} as text.template in a recipe"
            )
        return self._fitted(render, last, special=False)

    def _fitted(self, render: Callable[[str], str], text: str, *, special: bool = True) -> list[int]:
        """Tokens of a rendered pair, whose text is truncated until it fits: what is rendered behind it stays.

        `special`: whether the tokenizer adds its special tokens; chat templates write them themselves.
        """
        tokens = self._rendered(render, text, special)
        if len(tokens) <= self.length:
            return tokens
        one, other = (self._rendered(render, filler, special) for filler in FILLERS)
        before, behind = _shared(one, other), _shared(one[::-1], other[::-1])
        if before + behind >= self.length:
            raise DataError(
                f"a query of {len(self._rendered(render, '', special))} tokens with its template doesn't fit into "
                f"sequences of {self.length} tokens ({shorten(render(''), 80)}): raise text.sequence_length"
            )
        return tokens[: self.length - behind] + one[len(one) - behind :]

    def _rendered(self, render: Callable[[str], str], text: str, special: bool) -> list[int]:
        tokens: list[int] = self.tokenizer(render(text), add_special_tokens=special, verbose=False)["input_ids"]
        return tokens


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens at the beginning that two lists have in common."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
