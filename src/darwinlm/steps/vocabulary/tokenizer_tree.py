"""The JSON of a tokenizer (library `tokenizers`), and the same with fewer tokens.

The merges of a BPE token within a word are those of the token alone, because no merge crosses its borders. If the
tokens that they give are kept, then all kept merges are applied in the old order, and a word whose tokens are all kept
is split as before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from math import inf
from typing import Any

from darwinlm.runtime.errors import ModelError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
CHAT = tuple({"role": role, "content": "a"} for role in ("system", "user", "assistant"))


class TokenizerTree:
    """The tokens of a tokenizer by number, their merges, and the parts of its JSON that hold numbers of tokens.

    `source` is the name of its model, for messages. Raises ModelError if it has no such JSON, or its model isn't BPE.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise _refused(source, "has no tokenizer.json and can't be converted to one")
        self.tree: dict[str, Any] = json.loads(backend.to_str())
        self.model: dict[str, Any] = self.tree["model"]
        if self.model["type"] != "BPE":
            raise _refused(source, f"is of the type {self.model['type']}, not BPE")
        if self.model.get("continuing_subword_prefix") or self.model.get("end_of_word_suffix"):
            raise _refused(source, "marks the inner or last pieces of words")
        self.pieces: dict[str, int] = self.model["vocab"]
        self.added: dict[int, str] = {token["id"]: token["content"] for token in self.tree["added_tokens"]}
        self.tokens: dict[int, str] = {number: token for token, number in self.pieces.items()} | self.added
        self._merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in self.model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(self._merges)}

    def indispensable(self, tokenizer: Any) -> set[int]:
        """Added and special tokens, bytes or single characters, and those of the chat template, with their paths."""
        fallback = bool(self.model.get("byte_fallback"))
        kept = set(self.added) | {
            number
            for piece, number in self.pieces.items()
            if BYTE.fullmatch(piece) or (not fallback and len(piece) == 1)
        }
        kept |= set(_numbers_of(self.tree.get("post_processor")))
        kept |= {number for number in tokenizer.all_special_ids if number in self.tokens}
        if self.model.get("unk_token") in self.pieces:
            kept.add(self.pieces[self.model["unk_token"]])
        for number in _chat_tokens(tokenizer):
            kept |= {number, *(self.path(number) or ())}
        return kept

    def path(self, number: int) -> list[int] | None:
        """The tokens that a token is merged from, one for each step, itself included; None if no merges give it."""
        token = self.tokens[number]
        if number in self.added:
            return [number]
        alone = [number] if self.model.get("ignore_merges") else None  # whole words are looked up directly
        parts = list(token)
        if any(part not in self.pieces for part in parts):
            return alone
        made = [self.pieces[part] for part in parts]
        while len(parts) > 1:
            rank, place = min((self._ranks.get(pair, inf), place) for place, pair in enumerate(pairwise(parts)))
            if rank == inf:
                return alone
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            made.append(self.pieces[parts[place]])
        return made

    def ordered(self, kept: Iterable[int]) -> list[int]:
        """Old numbers of kept tokens in their new order: pieces first, as `tokenizers` numbers them."""
        outside = set(self.added) - set(self.pieces.values())
        return sorted(kept, key=lambda number: (number in outside, number))

    def cut(self, kept: Sequence[int]) -> dict[str, Any]:
        """The JSON with the kept tokens only, numbered in the given order."""
        new = {old: number for number, old in enumerate(kept)}
        pieces = {piece: new[old] for piece, old in self.pieces.items() if old in new}
        vocabulary = dict(sorted(pieces.items(), key=lambda item: item[1]))
        merges = [list(pair) for pair in self._merges if {*pair, "".join(pair)} <= pieces.keys()]
        added = [{**token, "id": new[token["id"]]} for token in self.tree["added_tokens"]]
        padding = self.tree.get("padding")
        return {
            **self.tree,
            "model": {**self.model, "vocab": vocabulary, "merges": merges},
            "added_tokens": added,
            "post_processor": _renumbered(self.tree.get("post_processor"), new.__getitem__),
            "padding": padding and {**padding, "pad_id": new.get(padding["pad_id"], 0)},
        }


def _chat_tokens(tokenizer: Any) -> Iterator[int]:
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


def _numbers_of(processor: dict[str, Any] | None) -> list[int]:
    numbers: list[int] = []

    def seen(number: int) -> int:
        numbers.append(number)
        return number

    _renumbered(processor, seen)
    return numbers


def _renumbered(processor: dict[str, Any] | None, new: Callable[[int], int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_renumbered(step, new) for step in processor["processors"]]}
    changed: dict[str, Any] = {
        name: [processor[name][0], new(processor[name][1])] for name in ("sep", "cls") if name in processor
    }
    if "special_tokens" in processor:
        changed["special_tokens"] = {
            name: {**token, "ids": [new(number) for number in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    return {**processor, **changed}


def _refused(source: str, reason: str) -> ModelError:
    return ModelError(
        f"the vocabulary of {source} can't be cut: its tokenizer {reason}. Leave out --vocab (vocabulary), or give the "
        "model with a tokenizer.json of the type BPE"
    )
