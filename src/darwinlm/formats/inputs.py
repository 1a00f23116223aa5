"""Inputs of a model that reads, with which a written file is compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUERY, DOCUMENT = "{query}", "{document}"
"""What stands for a pair in a template."""


def added_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens that begin and end a text, of which these are the tokens; a server puts the latter behind a query too."""
    begin = [token for token in ids[:1] if token == tokenizer.bos_token_id]
    return begin, [token for token in ids[-1:] if token == tokenizer.eos_token_id]


@dataclass(frozen=True)
class Inputs:
    """Texts or pairs, and their tokens as the model reads them.

    Attributes:
        tokens: Tokens of each.
        pairs: Query and text of each; no query of a text alone.
        whole: Whether each is in its tokens without being cut.
        template: Text with {query} and {document}, and with the special tokens written out, whose tokens are those of a
            pair. None if there are only texts, or if the model reads the tokens of the two behind each other.
        remarks: What a server must be told of these inputs, for the user.
    """

    tokens: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str | None, str], ...]
    whole: tuple[bool, ...]
    template: str | None = None
    remarks: tuple[str, ...] = ()

    def within(self, longest: int) -> Inputs:
        """The same with at most `longest` tokens of each."""
        whole = tuple(fits and len(one) <= longest for fits, one in zip(self.whole, self.tokens, strict=True))
        return replace(self, tokens=tuple(one[:longest] for one in self.tokens), whole=whole)

    def filled(self, number: int) -> str:
        """A pair in the template."""
        assert self.template is not None
        query, text = self.pairs[number]
        return self.template.replace(QUERY, query or "").replace(DOCUMENT, text)
