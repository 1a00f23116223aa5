"""Cost of a smaller vocabulary on held-out text: more tokens, and bits per byte, which compare across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime.errors import CheckpointError
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.text.packing import added_bos, token_ids
from darwinlm.steps.vocabulary.step import Spelling


def measure_spelling(texts: Sequence[str], dense: Any, small: Any, rows: Sequence[int]) -> Spelling:
    """Compare two tokenizers on texts.

    `rows` holds the number in `dense` of every token of `small`. Raises CheckpointError if they number other tokens,
    spell different texts, or kept tokens in different ways.
    """
    names = small.convert_ids_to_tokens(range(len(rows)))
    if names != dense.convert_ids_to_tokens(rows) or len(small.get_vocab()) != len(rows):
        raise CheckpointError(
            "the tokenizer with the smaller vocabulary numbers its tokens differently: please report this"
        )
    new = {old: number for number, old in enumerate(rows)}
    affected = before = after = 0
    for text, old, ids in zip(texts, token_ids(dense, list(texts)), token_ids(small, list(texts)), strict=True):
        lost = sum(token not in new for token in old)
        same = [new[token] for token in old] == ids if not lost else dense.decode(old) == small.decode(ids)
        if not same:
            raise CheckpointError(
                f"the tokenizer with the smaller vocabulary splits the text {text[:40]!r} differently: please report "
                "this"
            )
        affected, before, after = affected + lost, before + len(old), after + len(ids)
    return Spelling(sum(len(text.encode()) for text in texts), before, after, affected)


def measure_bits(
    read: Callable[[Tensor], Decoder],
    passages: Sequence[str],
    tokenizer: Any,
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    memory: HiddenMemory | None = None,
) -> float:
    """Bits per byte of a model with its tokenizer, which compare across vocabularies.

    `read` gives the model to read some tokens with; its streams may go where `memory` says. Each passage is read after
    the bos token, or the end token, and predicted with its end.
    """
    begin, end = added_bos(tokenizer), tokenizer.eos_token_id
    before = [token for token in (end if begin is None else begin,) if token is not None]
    after = [] if end is None else [end]
    wholes = [torch.tensor([*before, *ids, *after]) for ids in token_ids(tokenizer, list(passages))]
    tokens = pad_sequence(wholes, batch_first=True)
    lengths = torch.tensor([len(each) for each in wholes])[:, None]
    places = torch.arange(tokens.shape[1])[None]
    model = read(torch.cat(wholes))
    quality = measure_quality(
        model,
        {"dense": model},
        tokens,
        batch_tokens=batch_tokens,
        where=(places > 0) & (places < lengths),
        memory=memory,
        progress=progress,
    )["dense"]
    return quality.tokens * math.log2(quality.perplexity) / sum(len(text.encode()) for text in passages)
