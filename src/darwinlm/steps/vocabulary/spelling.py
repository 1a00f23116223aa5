"""Cost of a smaller vocabulary on held-out text: more tokens, and bits per byte, which compare across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime.errors import CheckpointError
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.text.packing import added_bos, token_ids
from darwinlm.steps.vocabulary.vocabulary_figures import Spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measure_spelling(
    texts: Sequence[str], dense: PreTrainedTokenizerBase, small: PreTrainedTokenizerBase, rows: Sequence[int]
) -> Spelling:
    """Compare two tokenizers on texts.

    `rows` holds the number in `dense` of every token of `small`. Raises CheckpointError if they number other tokens,
    spell different texts, or kept tokens in different ways.
    """
    names = small.convert_ids_to_tokens(range(len(rows)))
    if names != dense.convert_ids_to_tokens(rows) or len(small.get_vocab()) != len(rows):
        raise CheckpointError(
            "the tokenizer with the smaller vocabulary numbers its tokens differently: please report this"
        )
    numbers = {old: new for new, old in enumerate(rows)}
    affected = dense_tokens = tokens = 0
    for text, old, new in zip(texts, token_ids(dense, list(texts)), token_ids(small, list(texts)), strict=True):
        removed = sum(token not in numbers for token in old)
        same = dense.decode(old) == small.decode(new) if removed else [numbers[token] for token in old] == new
        if not same:
            raise CheckpointError(
                f"the tokenizer with the smaller vocabulary splits the text {text[:40]!r} differently: please report "
                "this"
            )
        affected += removed
        dense_tokens += len(old)
        tokens += len(new)
    return Spelling(sum(len(text.encode()) for text in texts), dense_tokens, tokens, affected)


def measure_bits(
    read: Callable[[Tensor], Decoder],
    passages: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int,
    spelt: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    memory: HiddenMemory | None = None,
) -> float:
    """Bits per byte of a model with its tokenizer, which compare across vocabularies.

    `read` gives a decoder for some tokens; `memory` says where its streams may go. `spelt` are the tokens of each
    passage, if they aren't those that the tokenizer gives. Each passage is read after the bos token, or else the end
    token, and its end is predicted too.
    """
    begin, end = added_bos(tokenizer), tokenizer.eos_token_id
    first = end if begin is None else begin
    before = [] if first is None else [first]
    after = [] if end is None else [end]
    texts = token_ids(tokenizer, list(passages)) if spelt is None else spelt
    sequences = [torch.tensor([*before, *ids, *after]) for ids in texts]
    tokens = pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])[:, None]
    positions = torch.arange(tokens.shape[1])[None]
    model = read(torch.cat(sequences))
    quality = measure_quality(
        model,
        {"dense": model},
        tokens,
        batch_tokens=batch_tokens,
        predicted=(positions > 0) & (positions < lengths),
        memory=memory,
        progress=progress,
    )["dense"]
    return quality.tokens * math.log2(quality.perplexity) / sum(len(text.encode()) for text in passages)
