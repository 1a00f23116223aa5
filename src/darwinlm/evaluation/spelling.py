"""Cost of a smaller vocabulary on held-out text: more tokens, and bits per byte, which compare across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import token_losses
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.figures import Spelling
from darwinlm.streaming.decoder import Decoder
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.text.packing import added_bos, token_ids


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


@torch.no_grad()
def measure_bits(
    read: Callable[[Tensor], Decoder],
    passages: Sequence[str],
    tokenizer: Any,
    progress: Callable[[], object] = lambda: None,
    memory: HiddenMemory | None = None,
) -> float:
    """Bits per byte of a model with its tokenizer, which compare across vocabularies.

    `read` gives the model to read some tokens with; its streams may go where `memory` says. Each passage is read after
    the bos token, or the end token, and predicted with its end.
    """
    begin, end = added_bos(tokenizer), tokenizer.eos_token_id
    before = [token for token in (end if begin is None else begin,) if token is not None]
    wholes = [
        torch.tensor([*before, *ids, *([] if end is None else [end])]) for ids in token_ids(tokenizer, list(passages))
    ]
    inputs = [each[None, :-1] for each in wholes]
    model, total = read(torch.cat([each[0] for each in inputs])), 0.0
    with model.with_head():
        for states, targets in zip(model.through(inputs, memory=memory), wholes, strict=True):
            pieces = (torch.split(each, model.head_tokens) for each in (states[0], targets[1:].to(model.device)))
            for state, target in zip(*pieces, strict=True):
                total += float(exact(token_losses(model.head(state), target)).sum(dtype=torch.float64))
            progress()
    return total / (math.log(2) * sum(len(text.encode()) for text in passages))
