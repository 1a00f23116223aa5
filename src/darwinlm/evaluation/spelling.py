"""Cost of a smaller vocabulary on held-out text: more tokens, and bits per byte, which compare across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from darwinlm.data.packing import added_bos, token_ids
from darwinlm.evaluation.divergence import log_normalisers, token_losses
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.figures import Spelling


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
    model: Any,
    passages: Sequence[str],
    dense: Any,
    small: Any,
    rows: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[str, float]:
    """Bits per byte of a model in both vocabularies, and the probability of the tokens that the smaller one lacks.

    Each passage is read after the bos token, or the end token, and predicted with its end. `rows` holds the number in
    `dense` of every token of `small`.

    Returns:
        `dense_bits_per_byte`; `bits_per_byte` with the smaller vocabulary, whose probabilities sum to one; `mass_lost`,
        the mean of -log of the probability of kept tokens, in nats per token.
    """
    begin, end = added_bos(dense), dense.eos_token_id
    before = [token for token in (end if begin is None else begin,) if token is not None]
    after = [] if end is None else [end]
    kept = torch.tensor(rows, device=model.device)
    new = {old: number for number, old in enumerate(rows)}
    totals = {"dense_bits_per_byte": 0.0, "bits_per_byte": 0.0, "mass_lost": 0.0}
    tokens = n_bytes = 0
    spelt = zip(passages, token_ids(dense, list(passages)), token_ids(small, list(passages)), strict=True)
    for done, (text, old, ids) in enumerate(spelt):
        whole = torch.tensor([*before, *old, *after], device=model.device)
        logits = model(input_ids=whole[None, :-1], use_cache=False).logits[0]
        totals["dense_bits_per_byte"] += float(token_losses(logits, whole[1:]).sum(dtype=torch.float64))
        ends = [[new[token] for token in each] for each in (before, after)]
        cut = torch.tensor([*ends[0], *ids, *ends[1]], device=model.device)
        logits = model(input_ids=kept[cut][None, :-1], use_cache=False).logits[0]
        mass = log_normalisers(logits)
        logits = logits.index_select(-1, kept)
        normalisers = log_normalisers(logits)
        totals["bits_per_byte"] += float(token_losses(logits, cut[1:], normalisers).sum(dtype=torch.float64))
        totals["mass_lost"] += float((mass - normalisers).sum(dtype=torch.float64))
        tokens, n_bytes = tokens + len(cut) - 1, n_bytes + len(text.encode())
        progress(done + 1, len(passages))
    per_byte = 1 / (math.log(2) * n_bytes)
    return {name: total * (per_byte if name.endswith("byte") else 1 / tokens) for name, total in totals.items()}
