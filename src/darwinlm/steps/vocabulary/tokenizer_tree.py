"""The JSON of a tokenizer (library `tokenizers`), and the same with fewer tokens.

The merges of a BPE token within a word are those of the token alone, because no merge crosses its borders. If the
tokens that they give are kept, then all kept merges are applied in the old order, and a word whose tokens are all kept
is split as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, NotRequired, TypedDict

from darwinlm.runtime.errors import ModelError

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
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


class BytePairs(TypedDict):
    """A BPE model: numbers of the pieces, and the merges in their order, each as a pair or as two pieces in a word."""

    type: str
    vocab: dict[str, int]
    merges: list[list[str]] | list[str]
    unk_token: NotRequired[str | None]
    byte_fallback: NotRequired[bool]
    ignore_merges: NotRequired[bool]
    continuing_subword_prefix: NotRequired[str | None]
    end_of_word_suffix: NotRequired[str | None]


class TokenizerJson(TypedDict):
    """A tokenizer.json, as far as it depends on numbers of tokens; further fields are carried along."""

    model: BytePairs
    added_tokens: list[AddedToken]
    post_processor: NotRequired[Processor | None]
    padding: NotRequired[Padding | None]


class TokenizerTree:
    """The tokens of a tokenizer by number, their merges, and the parts of its JSON that hold numbers of tokens.

    `source` is the name of its model, for messages. Raises ModelError if it has no such JSON, or its model isn't BPE.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise _refused(source, "has no tokenizer.json and can't be converted to one")
        self._decoder: Decoder | None = backend.decoder
        self.tree: TokenizerJson = json.loads(backend.to_str())
        self.model: BytePairs = self.tree["model"]
        if self.model["type"] != "BPE":
            raise _refused(source, f"is of the type {self.model['type']}, not BPE")
        if self.model.get("continuing_subword_prefix") or self.model.get("end_of_word_suffix"):
            raise _refused(source, "marks the inner or last pieces of words")
        self.pieces: dict[str, int] = self.model["vocab"]
        self.added: dict[int, str] = {token["id"]: token["content"] for token in self.tree["added_tokens"]}
        self.tokens: dict[int, str] = {number: token for token, number in self.pieces.items()} | self.added
        merges = self.model["merges"]
        self._merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}

    def indispensable(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Tokens that are never removed, with their paths.

        These are added and special tokens, bytes or single characters, numbers of up to three digits, white space, and
        the tokens of the chat template.
        """
        fallback = bool(self.model.get("byte_fallback"))
        kept = set(self.added) | {
            number
            for piece, number in self.pieces.items()
            if BYTE.fullmatch(piece) or (not fallback and len(piece) == 1)
        }
        kept |= set(_numbers_of(self.tree.get("post_processor")))
        kept |= {number for number in tokenizer.all_special_ids if number in self.tokens}
        unknown = self.model.get("unk_token")
        if unknown in self.pieces:
            kept.add(self.pieces[unknown])
        further = {number for number in self.tokens if NUMBER_OR_SPACE.fullmatch(self.text(number))}
        return self.closed(kept | further.union(_chat_tokens(tokenizer)))

    def closed(self, numbers: Set[int]) -> set[int]:
        """Tokens with those that they are merged from, without which text would no longer be merged to them."""
        known = numbers & self.tokens.keys()  # a damaged tokenizer may put others around a text
        return {*numbers, *(part for number in known for part in self.path(number) or ())}

    def text(self, number: int) -> str:
        """The text that a token stands for, maybe without a space at its beginning; bytes aren't characters."""
        token = self.tokens[number]
        if number in self.added or self._decoder is None:
            return token
        return str(self._decoder.decode([token])) or " "  # of SentencePiece's space, nothing would be left

    def path(self, number: int) -> list[int] | None:
        """The tokens that a token is merged from, one for each step, itself included; None if no merges give it."""
        token = self.tokens[number]
        if number in self.added and self.pieces.get(token) != number:
            return [number]
        # Added tokens are found in the text before it is merged, and whole words may be looked up directly.
        alone = [number] if number in self.added or self.model.get("ignore_merges") else None
        parts = list(token)
        if any(part not in self.pieces for part in parts):
            return alone
        path = [self.pieces[part] for part in parts]
        while len(parts) > 1:
            rank, place = min((self._ranks.get(pair, inf), place) for place, pair in enumerate(pairwise(parts)))
            if rank == inf:
                return alone
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            path.append(self.pieces[parts[place]])
        return path

    def ordered(self, kept: Iterable[int]) -> list[int]:
        """Old numbers of kept tokens in their new order: pieces first, as `tokenizers` numbers them."""
        outside = set(self.added) - set(self.pieces.values())
        return sorted(kept, key=lambda number: (number in outside, number))

    def cut(self, kept: Sequence[int]) -> TokenizerJson:
        """The JSON with the kept tokens only, numbered in the given order."""
        numbers = {old: new for new, old in enumerate(kept)}
        pieces = {piece: numbers[old] for piece, old in self.pieces.items() if old in numbers}
        vocabulary = dict(sorted(pieces.items(), key=lambda item: item[1]))
        merges = [list(pair) for pair in self._merges if {*pair, "".join(pair)} <= pieces.keys()]
        added: list[AddedToken] = [{**token, "id": numbers[token["id"]]} for token in self.tree["added_tokens"]]
        processor, padding = self.tree.get("post_processor"), self.tree.get("padding")
        return {
            **self.tree,
            "model": {**self.model, "vocab": vocabulary, "merges": merges},
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
        "model with a tokenizer.json of the type BPE"
    )
