"""Perplexity and KL to the dense model on held-out text, all models on the same tokens.

A decoder takes text through its blocks in one walk. Logits exist for a few tokens at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.model.divergence import DenseDistribution, log_normalisers, token_losses
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import NumericsError
from darwinlm.runtime.memory import kept_memory


@dataclass(frozen=True)
class Quality:
    """Figures on held-out text.

    Attributes:
        perplexity: Exponential of the mean cross-entropy of a token, given the earlier ones in its block.
        kl: Mean KL(dense ‖ model) in nats per token.
        tokens: Number of predictions.
        agreement: Share of tokens at which both rank the same token first: of a draft's greedy tokens that the dense
            model accepts.
    """

    perplexity: float
    kl: float
    tokens: int
    agreement: float


class WholeModel:
    """A model in memory of any architecture: its states are its logits."""

    head_tokens = 256

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    def through(
        self, batches: Sequence[Tensor], *, keep: Sequence[int] = (), memory: HiddenMemory | None = None
    ) -> Iterable[Tensor]:
        """Logits [b, t, v] of each batch when it is asked for."""
        more = [{"logits_to_keep": last} for last in keep] or [{}] * len(batches)
        for batch, which in zip(batches, more, strict=True):
            yield self.model(input_ids=batch.to(self.device), use_cache=False, **which).logits

    def head(self, states: Tensor) -> Tensor:
        """The logits themselves."""
        return states

    def with_head(self, like: object = None) -> AbstractContextManager[None]:
        """Nothing to do."""
        del like
        return nullcontext()


Reader = Decoder | WholeModel
"""A model that text is read with: first through its blocks, then through its head."""


def reading(model: Any) -> Reader:
    """A decoder, or a whole model of transformers, to read text with."""
    return model if isinstance(model, Decoder) else WholeModel(model)


@torch.no_grad()
def measure_quality(
    dense: Any,
    models: Mapping[str, Any],
    tokens: Tensor,
    *,
    batch_tokens: int,
    where: Tensor | None = None,
    memory: HiddenMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Quality]:
    """Measure several models on the same tokens; processes share the sequences.

    `tokens` is [n, t] held-out text, of which `where`, [n, t] bool, says which are predicted, not the first of a
    sequence; None takes all others. Models are decoders, or whole models of transformers. The dense model, the
    reference of the KL, may be among them. Streams of decoders may go where `memory` says. One walk takes all batches,
    so that weights are read once. `progress` gets the finished passes of a batch through a model, and all of them.

    Raises NumericsError if a loss isn't finite.
    """
    share = tokens[parallel.place() :: parallel.size()]
    readers = {id(model): reading(model) for model in (dense, *models.values())}
    places = [list(readers).index(id(model)) for model in models.values()]
    sums = torch.zeros(len(models), 3, dtype=torch.float64)
    size = max(1, batch_tokens // tokens.shape[1])
    batches = torch.split(share, size) if len(share) else ()
    masks: Sequence[Tensor | None] = [None] * len(batches)
    if where is not None and len(share):
        masks = torch.split(where[parallel.place() :: parallel.size()].roll(-1, 1), size)
    whole, passes = sum(isinstance(reader, WholeModel) for reader in readers.values()), 0
    with kept_memory(readers[id(dense)].device), ExitStack() as heads:
        ends = []
        for reader in readers.values() if batches else ():
            ends.append(iter(reader.through(batches, memory=memory)))
            if not isinstance(reader, WholeModel):
                passes += len(batches)
                progress(passes, len(readers) * len(batches))
        for reader in readers.values() if batches else ():
            heads.enter_context(reader.with_head(readers[id(dense)]))
        for batch, mask in zip(batches, masks, strict=True):
            found = _measure_batch(list(readers.values()), [next(end).flatten(0, 1) for end in ends], batch, mask)
            sums += torch.stack([found[place] for place in places]) if places else sums
            if whole:  # their passes are made here
                passes += whole
                progress(passes, len(readers) * len(batches))
    sums = parallel.all_reduce(sums)
    for name, total in zip(models, sums, strict=True):
        if not bool(total.isfinite().all()):
            raise NumericsError(f"the losses of {name} aren't finite (NaN or infinity): try float32, or another model")
    count = tokens.numel() if where is None else int(where.sum())
    predictions = count - (len(tokens) if where is None else 0)
    return {name: _quality(total, count, predictions) for name, total in zip(models, sums, strict=True)}


def _quality(sums: Tensor, tokens: int, predictions: int) -> Quality:
    """The figures, from the sums of `_measure_batch` over all batches; the last tokens of sequences predict nothing."""
    loss, kl, agreed = sums.tolist()
    return Quality(
        math.exp(min(loss / predictions, 700.0)),  # without overflow
        max(kl / tokens, 0.0),
        predictions,
        agreed / predictions,
    )


def _measure_batch(readers: Sequence[Reader], states: Sequence[Tensor], batch: Tensor, mask: Tensor | None) -> Tensor:
    """Sums of cross-entropy, KL and agreement of the first rank over a batch, float64 [3] for each model.

    The first model is the reference. A mask [b, t] selects tokens whose successors count. A separate function, so that
    states are released after each batch.
    """
    device = states[0].device
    # The last position has no next token. It is skipped below, because slicing here would copy.
    following, size = batch.roll(-1, 1).flatten().to(device), readers[0].head_tokens
    if mask is not None:
        following, *states = (each[mask.flatten().to(each.device)] for each in (following, *states))
    losses, divergence, agreed = torch.empty(3, len(readers), len(following), device=device)
    for start in range(0, len(following), size):
        piece = slice(start, start + size)
        for place, (reader, state) in enumerate(zip(readers, states, strict=True)):
            logits = reader.head(state[piece])
            if place == 0:
                distribution, first = DenseDistribution(logits), logits.argmax(-1)
            totals = log_normalisers(logits)
            losses[place, piece] = token_losses(logits, following[piece], totals)
            divergence[place, piece] = distribution.kl(logits, normalisers=totals)
            agreed[place, piece] = logits.argmax(-1) == first
            del logits
    figures = exact(torch.stack((losses, divergence, agreed), 1)).double()
    if mask is None:
        figures = figures.view(len(readers), 3, *batch.shape)
        figures[:, ::2, :, -1] = 0
    return figures.sum([*range(2, figures.ndim)]).cpu()
