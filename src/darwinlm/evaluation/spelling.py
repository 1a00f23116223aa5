"""Cost of a smaller vocabulary on held-out text: more tokens, and bits per byte, which compare across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import log_normalisers, token_losses
from darwinlm.evaluation.quality import HEAD_TOKENS
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
    dense: Any,
    small: Any,
    rows: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
    memory: HiddenMemory | None = None,
) -> Mapping[str, float]:
    """Bits per byte of a model in both vocabularies, and the probability of the tokens that the smaller one lacks.

    `read` gives the model to read some tokens with; its streams may go where `memory` says. Each passage is read after
    the bos token, or the end token, and predicted with its end. `rows` holds the number in `dense` of every token of
    `small`.

    Returns:
        `dense_bits_per_byte`; `bits_per_byte` with the smaller vocabulary, whose probabilities sum to one; `mass_lost`,
        the mean of -log of the probability of kept tokens, in nats per token.
    """
    begin, end = added_bos(dense), dense.eos_token_id
    before = [token for token in (end if begin is None else begin,) if token is not None]
    after = [] if end is None else [end]
    new = {old: number for number, old in enumerate(rows)}
    ends = [[new[token] for token in each] for each in (before, after)]
    wholes = [torch.tensor([*before, *old, *after]) for old in token_ids(dense, list(passages))]
    cuts = [torch.tensor([*ends[0], *ids, *ends[1]]) for ids in token_ids(small, list(passages))]
    kept = torch.tensor(rows)
    inputs = [each[None, :-1] for each in (*wholes, *(kept[cut] for cut in cuts))]
    model = read(torch.cat([each[0] for each in inputs]))
    kept = kept.to(model.device)
    totals = {"dense_bits_per_byte": 0.0, "bits_per_byte": 0.0, "mass_lost": 0.0}
    with model.with_head():
        for done, (states, targets) in enumerate(
            zip(model.through(inputs, memory=memory), (*wholes, *cuts), strict=True)
        ):
            pieces = (torch.split(each, HEAD_TOKENS) for each in (states[0], targets[1:].to(model.device)))
            for state, target in zip(*pieces, strict=True):
                logits = model.head(state)
                if done < len(wholes):
                    totals["dense_bits_per_byte"] += _total(token_losses(logits, target))
                    continue
                mass = log_normalisers(logits)
                logits = logits.index_select(-1, kept)
                normalisers = log_normalisers(logits)
                totals["bits_per_byte"] += _total(token_losses(logits, target, normalisers))
                totals["mass_lost"] += _total(mass - normalisers)
            progress(done + 1, len(inputs))
    tokens = sum(len(cut) - 1 for cut in cuts)
    per_byte = 1 / (math.log(2) * sum(len(text.encode()) for text in passages))
    return {name: total * (per_byte if name.endswith("byte") else 1 / tokens) for name, total in totals.items()}


def _total(values: Tensor) -> float:
    return float(exact(values).sum(dtype=torch.float64))
