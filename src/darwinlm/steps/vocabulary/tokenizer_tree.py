"""The JSON of a tokenizer (library `tokenizers`), and the same with fewer tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, NotRequired, TypedDict

from darwinlm.runtime.errors import ModelError
from darwinlm.steps.vocabulary.token_pieces import BytePairs, Scored, pieces_of

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder
    from transformers import PreTrainedTokenizerBase

NUMBER_OR_SPACE = re.compile(r" ?[0-9]{1,3}|\s+")
"""Text of tokens that always stay because code and tables need them."""
CHAT = tuple({"role": role, "content": "a"} for role in ("system", "user", "assistant"))


class AddedToken(TypedDict):
    """A token that isn't a piece of the model, with its number."""

    id: int
    content: str


class SpecialTokens(TypedDict):
    """Numbers of the tokens that a name in a template stands for."""

    ids: list[int]


class Processor(TypedDict):
    """A step after the splitting, which adds special tokens; `sep` and `cls` are a token and its number."""

    type: str
    processors: NotRequired[list[Processor]]
    sep: NotRequired[tuple[str, int]]
    cls: NotRequired[tuple[str, int]]
    special_tokens: NotRequired[dict[str, SpecialTokens]]


class Padding(TypedDict):
    """Padding of batches with a token."""

    pad_id: int


class TokenizerJson(TypedDict):
    """A tokenizer.json, as far as it depends on numbers of tokens; further fields are carried along."""

    model: BytePairs | Scored
    added_tokens: list[AddedToken]
    post_processor: NotRequired[Processor | None]
    padding: NotRequired[Padding | None]


class TokenizerTree:
    """The tokens of a tokenizer by number, and the parts of its JSON that hold numbers of tokens.

    `source` is the name of its model, for messages. Raises ModelError if it has no such JSON, or its model is neither
    BPE nor Unigram.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise _refused(source, "has no tokenizer.json and can't be converted to one")
        self._decoder: Decoder | None = backend.decoder
        self.tree: TokenizerJson = json.loads(backend.to_str())
        pieces = pieces_of(self.tree["model"])
        if isinstance(pieces, str):
            raise _refused(source, pieces)
        self._pieces = pieces
        self.pieces: dict[str, int] = pieces.numbers
        self.added: dict[int, str] = {token["id"]: token["content"] for token in self.tree["added_tokens"]}
        self.tokens: dict[int, str] = {number: token for token, number in self.pieces.items()} | self.added

    def indispensable(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Tokens that are never removed, with their paths.

        These are added and special tokens, bytes or single characters, numbers of up to three digits, white space, and
        the tokens of the chat template.
        """
        kept = set(self.added) | self._pieces.needed()
        kept |= set(_numbers_of(self.tree.get("post_processor")))
        kept |= {number for number in tokenizer.all_special_ids if number in self.tokens}
        further = {number for number in self.tokens if NUMBER_OR_SPACE.fullmatch(self.text(number))}
        return self.closed(kept | further.union(_chat_tokens(tokenizer)))

    def closed(self, numbers: Set[int]) -> set[int]:
        """Tokens with those that they are made from, without which text would no longer be split into them."""
        known = numbers & self.tokens.keys()  # a damaged tokenizer may put others around a text
        return {*numbers, *(part for number in known for part in self.path(number) or ())}

    def text(self, number: int) -> str:
        """The text that a token stands for, maybe without a space at its beginning; bytes aren't characters."""
        token = self.tokens[number]
        if number in self.added or self._decoder is None:
            return token
        return str(self._decoder.decode([token])) or " "  # of SentencePiece's space, nothing would be left

    def path(self, number: int) -> list[int] | None:
        """The tokens that a token is made from, itself included; None if text is never split into it."""
        token = self.tokens[number]
        if number in self.added and self.pieces.get(token) != number:
            return [number]
        path = self._pieces.path(token)
        # Added tokens are found in the text before it is split into pieces.
        return [number] if path is None and number in self.added else path

    def ordered(self, kept: Iterable[int]) -> list[int]:
        """Old numbers of kept tokens in their new order: pieces first, as `tokenizers` numbers them."""
        outside = set(self.added) - set(self.pieces.values())
        return sorted(kept, key=lambda number: (number in outside, number))

    def cut(self, kept: Sequence[int]) -> TokenizerJson:
        """The JSON with the kept tokens only, numbered in the given order."""
        numbers = {old: new for new, old in enumerate(kept)}
        added: list[AddedToken] = [{**token, "id": numbers[token["id"]]} for token in self.tree["added_tokens"]]
        processor, padding = self.tree.get("post_processor"), self.tree.get("padding")
        return {
            **self.tree,
            "model": self._pieces.cut(numbers),
            "added_tokens": added,
            "post_processor": None if processor is None else _renumbered(processor, numbers.__getitem__),
            "padding": None if padding is None else {**padding, "pad_id": numbers.get(padding["pad_id"], 0)},
        }


def _chat_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    """Tokens of a short chat in the model's template, without a system message if it refuses one."""
    if not tokenizer.chat_template:
        return
    for chat in (CHAT, CHAT[1:]):
        for prompts in (False, True):
            try:
                text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=prompts)
            except Exception:  # noqa: BLE001, S112 - a template is a program; it may raise anything
                continue
            yield from tokenizer(text, add_special_tokens=False)["input_ids"]


def _numbers_of(processor: Processor | None) -> list[int]:
    """Numbers of all tokens that a post-processor adds."""
    numbers: list[int] = []

    def note(number: int) -> int:
        numbers.append(number)
        return number

    if processor is not None:
        _renumbered(processor, note)
    return numbers


def _renumbered(processor: Processor, number_of: Callable[[int], int]) -> Processor:
    """A post-processor with other numbers of its tokens; `number_of` gives the new number of an old one."""
    changed: Processor = {**processor}
    if processor["type"] == "Sequence":
        changed["processors"] = [_renumbered(step, number_of) for step in processor["processors"]]
        return changed
    if "sep" in processor:
        changed["sep"] = (processor["sep"][0], number_of(processor["sep"][1]))
    if "cls" in processor:
        changed["cls"] = (processor["cls"][0], number_of(processor["cls"][1]))
    if "special_tokens" in processor:
        changed["special_tokens"] = {
            name: {**tokens, "ids": [number_of(number) for number in tokens["ids"]]}
            for name, tokens in processor["special_tokens"].items()
        }
    return changed


def _refused(source: str, reason: str) -> ModelError:
    return ModelError(
        f"the vocabulary of {source} can't be cut: its tokenizer {reason}. Leave out --vocab (vocabulary), or give the "
        "model with a tokenizer.json of the type BPE or Unigram"
    )
