"""Looking back: does a model still read its context? Copying of lists and passages, by length and distance.

A list of random words, or a passage of text, is given twice; of the second time every token but the first can be read
off the first time. Accuracy is the share of these that the model holds for the likeliest; loss is their mean
cross-entropy.

Letters: b sequences, t tokens in each, n tokens that are given twice.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.data.packing import added_bos
from darwinlm.errors import DataError
from darwinlm.evaluation.divergence import token_losses

LISTS = 16
"""Sequences of each kind and length."""

SEED = 0
"""Of the lists: all models and runs with one tokenizer get the same ones."""

FEWEST_WORDS = 256
"""Words that a tokenizer must know for lists: of fewer, too many would come twice."""

SHORTEST_WORD = 3
"""Letters of it."""

MARKS = ("Ġ", "▁", " ")
"""What a token begins with that begins a word."""

LIST_LENGTHS = (16, 64)
PASSAGES = ((64, 0), (64, 192))
"""Tokens of passages, and between their first and second time."""


@dataclass(frozen=True)
class Copying:
    """Sequences that say something twice.

    Attributes:
        kind: Words or text.
        n: Tokens that come twice.
        apart: Tokens of other text between the first and the second time.
        tokens: Int64 [b, t]; the last n of each are the second time.
    """

    kind: str
    n: int
    apart: int
    tokens: Tensor

    @property
    def name(self) -> str:
        """For tables: `64 words`, `64 tokens of text, 192 apart`."""
        what = "words" if self.kind == "words" else "tokens of text"
        return f"{self.n} {what}" + (f", {self.apart} apart" if self.apart else "")


@dataclass(frozen=True)
class CopyingScore:
    """What a model made of it.

    Attributes:
        name: Name of the sequences.
        accuracy: Share of the tokens that can be read off the context and are the model's likeliest.
        loss: Their mean cross-entropy, nats.
        tokens: Number of these tokens.
    """

    name: str
    accuracy: float
    loss: float
    tokens: int


def word_tokens(tokenizer: Any) -> list[int]:
    """Tokens that are whole words: three small letters or more, behind the mark of a word's beginning if any."""
    special = set(tokenizer.all_special_ids)
    marked: list[int] = []
    bare: list[int] = []
    for piece, token in sorted(tokenizer.get_vocab().items(), key=lambda each: each[1]):
        begins = piece[:1] in MARKS
        word = piece[1:] if begins else piece
        if token not in special and len(word) >= SHORTEST_WORD and word.isalpha() and word == word.lower():
            (marked if begins else bare).append(token)
    return marked or bare


def word_lists(tokenizer: Any, n: int, *, lists: int = LISTS, seed: int = SEED) -> Copying:
    """Lists of n different random words of the tokenizer's vocabulary, each twice.

    Raises:
        DataError: The tokenizer has too few words.
    """
    words = word_tokens(tokenizer)
    if len(words) < FEWEST_WORDS:
        raise DataError(
            f"the tokenizer has {len(words)} tokens that are words of {SHORTEST_WORD} letters or more, but lists of "
            f"random words take {FEWEST_WORDS}: copying of lists can't be measured with it, only that of text"
        )
    draw = random.Random(f"{seed}:{n}")  # noqa: S311 - no secret hangs on it
    rows = [draw.sample(words, n) for _ in range(lists)]
    before = _bos(tokenizer)
    return Copying("words", n, 0, torch.tensor([[*before, *row, *row] for row in rows]))


def passages(tokenizer: Any, text: Tensor, n: int, apart: int = 0, *, lists: int = LISTS) -> Copying | None:
    """Passages of a text, each twice, with other text of the same block between.

    Args:
        tokenizer: Tokenizer; it determines whether sequences begin with bos.
        text: Blocks of it, [B, T].
        n: Tokens of a passage.
        apart: Tokens between.
        lists: Sequences, at most one from a block.

    Returns:
        None where the text's blocks are shorter than n + apart.
    """
    rows = text[:lists, 1 : 1 + n + apart]
    if rows.shape[1] < n + apart or not len(rows):
        return None
    before = torch.tensor(_bos(tokenizer), dtype=torch.int64).expand(len(rows), -1)
    return Copying("text", n, apart, torch.cat([before, rows, rows[:, :n]], dim=1))


def _bos(tokenizer: Any) -> list[int]:
    bos = added_bos(tokenizer)
    return [] if bos is None else [bos]


def longest_sequence(config: Any) -> int | None:
    """Tokens that a model takes at most, by its configuration; None where it doesn't say."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    return longest


def all_copying(
    tokenizer: Any, text: Tensor | None, longest: int | None, *, lists: int = LISTS
) -> tuple[list[Copying], list[str]]:
    """What is measured of any model: lists of 16 and 64 words, passages of 64 tokens said at once and 192 later.

    Args:
        tokenizer: Tokenizer of the model.
        text: Blocks of it, [B, T]; None leaves passages out.
        longest: Tokens that the model takes at most; None knows no bound.
        lists: Sequences of each length.

    Returns:
        The sequences, and in words what is left out and why.
    """
    found: list[Copying] = []
    remarks = []
    try:
        found += [word_lists(tokenizer, n, lists=lists) for n in LIST_LENGTHS]
    except DataError as error:
        remarks.append(str(error))
    if text is not None:
        for n, apart in PASSAGES:
            passage = passages(tokenizer, text, n, apart, lists=lists)
            if passage is None:
                remarks.append(f"copying of text wasn't measured over {n + apart} tokens: blocks of text are shorter")
            else:
                found.append(passage)
    kept = []
    for each in found:
        if longest is None or each.tokens.shape[1] <= longest:
            kept.append(each)
        else:
            remarks.append(f"copying of {each.name} takes {each.tokens.shape[1]} tokens, and the model {longest}")
    return kept, remarks


@torch.no_grad()
def measure_copying(
    models: Mapping[str, Any], copying: Sequence[Copying], *, batch_tokens: int
) -> dict[str, list[CopyingScore]]:
    """Accuracy and loss of several models on the same sequences, one score for each entry of `copying`."""
    found: dict[str, list[CopyingScore]] = {name: [] for name in models}
    for each in copying:
        rows = max(1, batch_tokens // each.tokens.shape[1])
        for name, model in models.items():
            right, lost, count = 0, 0.0, 0
            for batch in torch.split(each.tokens, rows):
                here = batch.to(model.device)
                targets = here[:, 1 - each.n :].flatten()
                logits = model(input_ids=here, use_cache=False, logits_to_keep=each.n).logits[:, :-1].flatten(0, 1)
                right += int((logits.argmax(-1) == targets).sum())
                lost += float(token_losses(logits, targets).sum(dtype=torch.float64))
                count += len(targets)
            found[name].append(CopyingScore(each.name, right / count, lost / count, count))
    return found
