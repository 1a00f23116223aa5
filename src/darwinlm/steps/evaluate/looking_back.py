"""Use of context: copying of lists and passages, by length and distance.

A list of random words, or a passage of text, is given twice. All tokens of the second occurrence but the first can be
copied. Accuracy is the share of them that the model ranks first; loss is their mean cross-entropy.

Letters: b sequences, t tokens in each, n repeated tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.model.divergence import token_losses
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import DataError
from darwinlm.steps.evaluate.model_figures import CopyingScore
from darwinlm.steps.evaluate.quality import Reader, reading, shares_blocks
from darwinlm.steps.text.packing import added_bos

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from darwinlm.model.walk.decoder import Decoder

FEWEST_LISTS, LISTS, LIST_TOKENS = 4, 16, 2048
"""Fewest and most sequences of each kind and length, and evaluation tokens for each of them."""

SEED = 0
"""Seed of the lists, so that all models with the same tokenizer get the same ones."""

FEWEST_WORDS = 256
"""Minimum number of words in a vocabulary for lists; with fewer, too many would repeat."""

SHORTEST_WORD = 3
"""Letters of the shortest word."""

MARKS = ("Ġ", "▁", " ")
"""Prefixes of tokens that begin a word."""

LIST_LENGTHS = (16, 64)
PASSAGES = ((64, 0), (64, 192))
"""Tokens of a passage, and tokens between its two occurrences."""


@dataclass(frozen=True)
class Copying:
    """Sequences that repeat a list or a passage.

    Attributes:
        name: Name for tables: `64 words`, `64 tokens of text, 192 apart`.
        n: Number of repeated tokens.
        tokens: Int64 [b, t]; the last n of each are the second occurrence.
    """

    name: str
    n: int
    tokens: Tensor


def number_of_lists(evaluation_tokens: int) -> int:
    """Number of sequences of each kind and length, from the number of tokens of evaluation text."""
    return min(max(evaluation_tokens // LIST_TOKENS, FEWEST_LISTS), LISTS)


def word_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that are whole words: three or more lower-case letters, after the prefix of a word's beginning if any."""
    special = set(tokenizer.all_special_ids)
    marked: list[int] = []
    bare: list[int] = []
    for piece, token in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        begins = piece[:1] in MARKS
        word = piece[1:] if begins else piece
        if token not in special and len(word) >= SHORTEST_WORD and word.isalpha() and word == word.lower():
            (marked if begins else bare).append(token)
    return marked or bare


def word_lists(tokenizer: PreTrainedTokenizerBase, n: int, *, lists: int = LISTS) -> Copying:
    """Lists of n different random words of the tokenizer's vocabulary, each twice. Raises DataError."""
    words = word_tokens(tokenizer)
    if len(words) < FEWEST_WORDS:
        raise DataError(
            f"the tokenizer has {len(words)} tokens that are words of {SHORTEST_WORD} letters or more, but lists of "
            f"random words take {FEWEST_WORDS}: copying of lists can't be measured with it, only that of text"
        )
    draw = random.Random(f"{SEED}:{n}")  # noqa: S311 - no secret depends on it
    drawn = torch.tensor([draw.sample(words, n) for _ in range(lists)])
    return Copying(f"{n} words", n, _after_bos(tokenizer, drawn, drawn))


def passages(
    tokenizer: PreTrainedTokenizerBase, text: Tensor, n: int, gap: int = 0, *, lists: int = LISTS
) -> Copying | None:
    """Passages of a text, each given twice, with other text of the same block in between.

    `text` is [B, T]. `gap` tokens of other text stand between the occurrences. A block gives at most one of the `lists`
    sequences. Returns None if the text's blocks are shorter than n + gap.
    """
    blocks = text[:lists, 1 : 1 + n + gap]
    if blocks.shape[1] < n + gap or not len(blocks):
        return None
    name = f"{n} tokens of text" + (f", {gap} apart" if gap else "")
    return Copying(name, n, _after_bos(tokenizer, blocks, blocks[:, :n]))


def _after_bos(tokenizer: PreTrainedTokenizerBase, *parts: Tensor) -> Tensor:
    """Tokens [b, t] joined, after bos if the tokenizer adds it."""
    bos = added_bos(tokenizer)
    if bos is None:
        return torch.cat(parts, dim=1)
    return torch.cat([parts[0].new_full((len(parts[0]), 1), bos), *parts], dim=1)


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """Maximum sequence length by the configuration of a model; None if it isn't stated."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    return longest


def all_copying(
    tokenizer: PreTrainedTokenizerBase, text: Tensor, longest: int | None, *, lists: int = LISTS
) -> tuple[list[Copying], list[str]]:
    """The standard sequences: lists of 16 and 64 words, passages of 64 tokens repeated at once and after 192 tokens.

    `text` is [B, T]. `longest` is the model's longest sequence; None has no limit. Also returns remarks about those
    that were left out.
    """
    sequences: list[Copying] = []
    remarks = []
    try:
        sequences += [word_lists(tokenizer, n, lists=lists) for n in LIST_LENGTHS]
    except DataError as error:
        remarks.append(str(error))
    for n, gap in PASSAGES:
        passage = passages(tokenizer, text, n, gap, lists=lists)
        if passage is None:
            remarks.append(f"copying of text wasn't measured over {n + gap} tokens: sequences of text are shorter")
        else:
            sequences.append(passage)
    fitting = []
    for copying in sequences:
        if longest is None or copying.tokens.shape[1] <= longest:
            fitting.append(copying)
        else:
            remarks.append(f"copying of {copying.name} takes {copying.tokens.shape[1]} tokens, and the model {longest}")
    return fitting, remarks


@torch.no_grad()
def measure_copying(
    models: Mapping[str, Decoder | PreTrainedModel], copying: Sequence[Copying], *, batch_tokens: int
) -> dict[str, list[CopyingScore]]:
    """Accuracy and loss of several models on the same sequences, which processes share, in one walk of each model."""
    sums = torch.zeros(len(models), len(copying), 3, dtype=torch.float64)
    with parallel.agree():
        for rows, model in zip(sums, map(reading, models.values()), strict=True):
            _add_copying(rows, model, copying, batch_tokens)
    totals: list[list[list[float]]] = parallel.all_reduce(sums).tolist()
    scores: dict[str, list[CopyingScore]] = {}
    for name, of_model in zip(models, totals, strict=True):
        scores[name] = [
            CopyingScore(kind.name, correct / count, loss / count, int(count))
            for kind, (correct, loss, count) in zip(copying, of_model, strict=True)
        ]
    return scores


def _add_copying(rows: Tensor, model: Reader, copying: Sequence[Copying], batch_tokens: int) -> None:
    """Add a model's correct tokens, losses and tokens to the rows of this process's sequences, [kinds, 3] float64."""
    kind_of, batches = _batches(copying, batch_tokens)
    walks = bool(batches) or shares_blocks(model)
    walk = model.through(batches, keep=[copying[kind].n for kind in kind_of]) if walks else ()
    with model.with_head():
        for kind, batch, states in zip(kind_of, batches, walk, strict=True):
            targets = batch[:, 1 - copying[kind].n :].flatten().to(states.device)
            state_pieces = torch.split(states[:, :-1].flatten(0, 1), model.head_tokens)
            target_pieces = torch.split(targets, model.head_tokens)
            for state, target in zip(state_pieces, target_pieces, strict=True):
                logits = model.head(state)
                correct = (logits.argmax(-1) == target).sum()
                loss = exact(token_losses(logits, target)).sum(dtype=torch.float64)
                rows[kind] += torch.tensor([float(correct), float(loss), len(target)], dtype=torch.float64)


def _batches(kinds: Sequence[Copying], batch_tokens: int) -> tuple[list[int], list[Tensor]]:
    """This process's share of all sequences in batches, and the kind of each batch."""
    kind_of: list[int] = []
    batches: list[Tensor] = []
    for kind, copying in enumerate(kinds):
        share = copying.tokens[parallel.place() :: parallel.size()]
        if len(share):
            batches += torch.split(share, max(1, batch_tokens // copying.tokens.shape[1]))
        kind_of += [kind] * (len(batches) - len(kind_of))
    return kind_of, batches
