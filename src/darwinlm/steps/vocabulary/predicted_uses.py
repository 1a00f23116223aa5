"""How often a model expects to use each token in further text of the kind that was given.

A short text uses few of the tokens that more text of its kind would use. At every position, the model gives each
token the probability with which it comes next. The sum of these probabilities over a text is the number of uses to
expect in another text of the same length and kind, also for tokens that the given text happens not to use.

Letters: n sequences, t tokens in each, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from darwinlm.model.walk.by_length import batches_by_length, lengths_of
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime.compute import exact


@torch.no_grad()
def predicted_uses(
    decoder: Decoder,
    tokens: Tensor,
    real: Tensor,
    *,
    batch_tokens: int,
    memory: HiddenMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Sum of the predicted probabilities of every token, float64 [v] on the CPU.

    `tokens` is [n, t]. `real`, [n, t] bool, marks the tokens that aren't padding, which stands on the right; only their
    predictions count. Streams of the decoder may go where `memory` says. `progress` gets the finished and all batches.
    """
    groups = [*batches_by_length(lengths_of(real), batch_tokens)]
    batches, masks = ([tensor[rows, :width] for rows, width in groups] for tensor in (tokens, real))
    uses: Tensor | None = None
    with decoder.with_head():
        for number, (states, mask) in enumerate(zip(decoder.through(batches, memory=memory), masks, strict=True)):
            rows = states.flatten(0, 1)[mask.flatten().to(states.device)]
            for piece in torch.split(rows, decoder.head_tokens):
                expected = exact(decoder.head(piece).float().softmax(-1)).double().sum(0)
                uses = expected if uses is None else uses + expected
            progress(number + 1, len(batches))
    assert uses is not None, "there are tokens"
    return uses.cpu()
