"""Perplexity and KL to the dense model on held-out text, all models on the same tokens.

A decoder takes text through its blocks in one walk. Logits exist for a few tokens at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import DenseDistribution, log_normalisers, token_losses
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import NumericsError
from darwinlm.runtime.memory import kept_memory
from darwinlm.streaming.decoder import Decoder
from darwinlm.streaming.hidden import HiddenMemory

HEAD_TOKENS = 256
"""Tokens whose logits exist at once."""

SUMS = 5
"""Sums over a batch beside those by position."""

FIRST_POSITIONS = 64
"""End of the first range of positions; each further range ends at twice the previous end."""


@dataclass(frozen=True)
class Quality:
    """Figures on held-out text.

    Attributes:
        perplexity: Exponential of the mean cross-entropy of a token, given the earlier ones in its block.
        kl: Mean KL(dense ‖ model) in nats per token.
        tokens: Number of predictions.
        acceptance: Mean of Σ min(p, q) over tokens: the share of the model's tokens, drawn at temperature 1, that the
            dense model would accept from it as a draft.
        agreement: Share of tokens at which both rank the same token first: the same for greedy drafts.
        kl_seen: Mean KL where the next token occurred earlier in the block; None without such tokens.
        kl_new: Mean KL where it did not; None without such tokens.
        seen: Share of next tokens that occurred earlier in the block.
        kl_by_position: Entries (position, KL): mean KL from the previous entry's position, or the beginning of the
            block, up to this position; positions double from 64 on.
    """

    perplexity: float
    kl: float
    tokens: int
    acceptance: float
    agreement: float
    kl_seen: float | None = None
    kl_new: float | None = None
    seen: float = 0.0
    kl_by_position: tuple[tuple[int, float], ...] = ()


class Read(Protocol):
    """A model that text is read with: first through its blocks, then through its head."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    def through(
        self, batches: Sequence[Tensor], *, keep: Sequence[int] = (), memory: HiddenMemory | None = None
    ) -> Iterable[Tensor]:
        """States [b, t, m] behind the last block for batches [b, t]; those of so many last positions of each batch."""

    def head(self, states: Tensor) -> Tensor:
        """Logits [n, v] of states [n, m]."""

    def with_head(self) -> AbstractContextManager[None]:
        """The head, while the body runs."""


class WholeModel:
    """A model in memory of any architecture: its states are its logits."""

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

    def with_head(self) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()


def reading(model: Any) -> Read:
    """A decoder, or a whole model of transformers, to read text with."""
    return model if isinstance(model, Decoder) else WholeModel(model)


@torch.no_grad()
def measure_quality(
    dense: Any,
    models: Mapping[str, Any],
    tokens: Tensor,
    *,
    batch_tokens: int,
    memory: HiddenMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    late: Callable[[], bool] | None = None,
) -> dict[str, Quality]:
    """Measure several models on the same tokens; processes share the sequences.

    `tokens` is [n, t] held-out text. Models are decoders, or whole models of transformers. The dense model, the
    reference of the KL, may be among them. Streams of decoders may go where `memory` says. One walk takes all batches,
    so that weights are read once. If `late` tells whether this process stops, walks take one batch,
    then two, four and so on. `progress` gets the finished passes of a batch through a model, and all of them.

    Raises NumericsError if a loss isn't finite.
    """
    tokens = tokens[parallel.place() :: parallel.size()]
    readers = {id(model): reading(model) for model in (dense, *models.values())}
    places = [list(readers).index(id(model)) for model in models.values()]
    sequences = max(1, batch_tokens // tokens.shape[1])
    sums = torch.zeros(len(models), SUMS + tokens.shape[1], dtype=torch.float64)
    n_seen, measured, done, passes = 0, 0, 0, 0
    whole = sum(isinstance(reader, WholeModel) for reader in readers.values())
    batches = torch.split(tokens, sequences) if len(tokens) else ()
    while done < len(batches):
        walk = batches if late is None else batches[done : 2 * done + 1]
        ends = []
        for reader in readers.values():
            ends.append(iter(reader.through(walk, memory=memory)))
            if not isinstance(reader, WholeModel):
                passes += len(walk)
                progress(passes, len(readers) * len(batches))
        with kept_memory(readers[id(dense)].device):  # of logits; blocks that come and go would fragment it
            for batch in walk:
                seen = seen_before(batch)
                n_seen += int(seen.sum())
                found = _measure_batch(list(readers.values()), [next(end).flatten(0, 1) for end in ends], batch, seen)
                sums += torch.stack([found[place] for place in places]) if places else sums
                measured, done = measured + len(batch), done + 1
                if whole:  # their passes are made here
                    passes += whole
                    progress(passes, len(readers) * len(batches))
        if late is not None and late():
            break
    measured, n_seen = parallel.all_reduce(torch.tensor([measured, n_seen])).tolist()
    predictions = measured * (tokens.shape[1] - 1)
    sums = parallel.all_reduce(sums)
    for name, total in zip(models, sums, strict=True):
        if not bool(total.isfinite().all()):
            raise NumericsError(f"the losses of {name} aren't finite (NaN or infinity): try float32, or another model")
    by_model = zip(models, sums, strict=True)
    return {name: _quality(total, measured, predictions, n_seen) for name, total in by_model}


def seen_before(tokens: Tensor) -> Tensor:
    """Whether the next token already occurred in the block, [n, t] -> [n, t - 1] bool."""
    n, t = tokens.shape
    # Sorted by token and position, all but the first of equal tokens have occurred before.
    order = tokens.argsort(dim=1, stable=True)
    ordered = tokens.gather(1, order)
    again = torch.zeros(n, t, dtype=torch.bool, device=tokens.device)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter_(1, order, again)[:, 1:]


def _quality(sums: Tensor, sequences: int, predictions: int, n_seen: int) -> Quality:
    """The figures, from the sums of `_measure_batch` over all batches."""
    loss, accepted, agreed, kl_seen, kl_new = sums[:SUMS].tolist()
    by_position = sums[SUMS:] / sequences
    return Quality(
        math.exp(min(loss / predictions, 700.0)),  # without overflow
        max(float(by_position.mean()), 0.0),
        predictions,
        accepted / predictions,
        agreed / predictions,
        max(kl_seen / n_seen, 0.0) if n_seen else None,
        max(kl_new / (predictions - n_seen), 0.0) if n_seen < predictions else None,
        n_seen / predictions,
        tuple((end, max(float(by_position[begin:end].mean()), 0.0)) for begin, end in _ranges(len(by_position))),
    )


def _ranges(length: int) -> list[tuple[int, int]]:
    """Ranges 0 to 64, 64 to 128, 128 to 256 and so on up to the length."""
    ends = [0]
    while ends[-1] < length:
        ends.append(min(max(2 * ends[-1], FIRST_POSITIONS), length))
    return list(pairwise(ends))


def _measure_batch(readers: Sequence[Read], states: Sequence[Tensor], batch: Tensor, seen: Tensor) -> Tensor:
    """Sums over a batch, float64 [SUMS + t] for each model; the first one is the reference of the KL.

    They are cross-entropy, Σ min(p, q), agreement of the first rank, KL for seen and for new next tokens, and KL by
    position.

    A separate function, so that states are released after each batch.
    """
    device = states[0].device
    # The last position has no next token. It is skipped below, because slicing here would copy.
    following, seen = batch.roll(-1, 1).flatten().to(device), seen.to(device)
    losses, accepted, agreed, divergence = torch.empty(4, len(readers), batch.numel(), device=device)
    for start in range(0, batch.numel(), HEAD_TOKENS):
        piece = slice(start, start + HEAD_TOKENS)
        for place, (reader, state) in enumerate(zip(readers, states, strict=True)):
            with reader.with_head():
                logits = reader.head(state[piece])
            if place == 0:
                distribution, first = DenseDistribution(logits), logits.argmax(-1)
            totals = log_normalisers(logits)
            losses[place, piece] = token_losses(logits, following[piece], totals)
            divergence[place, piece] = distribution.kl(logits, normalisers=totals)
            accepted[place, piece] = distribution.acceptance(logits, totals)
            agreed[place, piece] = logits.argmax(-1) == first
            del logits
    figures = exact(torch.stack((losses, accepted, agreed, divergence), 1)).view(len(readers), 4, *batch.shape)
    whole = figures[:, :3, :, :-1].sum((2, 3), dtype=torch.float64)
    kl, halves = figures[:, 3], exact(torch.stack((seen, ~seen))).double()
    by_next = torch.einsum("rnt,hnt->rh", kl[..., :-1].double(), halves)
    return torch.cat([whole, by_next, kl.sum(1, dtype=torch.float64)], 1).cpu()
