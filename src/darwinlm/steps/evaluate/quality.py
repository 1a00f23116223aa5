"""Metrics of tokens on held-out text, all models on the same tokens.

A decoder takes text through its blocks in one walk. Logits exist for a few tokens at once.

Letters: b sequences, t tokens in each, n tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.model.walk.by_length import batches_by_length, lengths_of
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import NumericsError
from darwinlm.runtime.memory import kept_memory
from darwinlm.steps.evaluate.metric import TokenMetric, token_metrics
from darwinlm.steps.evaluate.metrics import Agreement, Divergence, Perplexity
from darwinlm.steps.evaluate.predictions import DensePredictions, Predictions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Quality:
    """Figures of a model on held-out text.

    Attributes:
        values: Figures by the names of the metrics.
        tokens: Number of predictions.
    """

    values: Mapping[str, float]
    tokens: int

    @property
    def perplexity(self) -> float:
        """Exponential of the mean cross-entropy."""
        return self.values[Perplexity.name]

    @property
    def kl(self) -> float:
        """Mean KL(dense ‖ model) in nats per token."""
        return self.values[Divergence.name]

    @property
    def agreement(self) -> float:
        """Share of tokens at which both models rank the same token first."""
        return self.values[Agreement.name]


class WholeModel:
    """A model in memory of any architecture: its states are its logits."""

    head_tokens = 256

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    def through(
        self, batches: Sequence[Tensor], *, keep: Sequence[int] = (), memory: HiddenMemory | None = None
    ) -> Iterable[Tensor]:
        """Logits [b, t, v] of each batch when it is asked for, or of the last `keep` positions."""
        options = [{"logits_to_keep": count} for count in keep] or [{}] * len(batches)
        for batch, option in zip(batches, options, strict=True):
            yield self.model(input_ids=batch.to(self.device), use_cache=False, **option).logits

    def head(self, states: Tensor) -> Tensor:
        """The logits themselves."""
        return states

    def with_head(self, like: object = None) -> AbstractContextManager[None]:
        """Nothing to do."""
        del like
        return nullcontext()


Reader = Decoder | WholeModel
"""A model that text is read with: first through its blocks, then through its head."""


def reading(model: Decoder | PreTrainedModel) -> Reader:
    """A decoder, or a whole model of transformers, to read text with."""
    return model if isinstance(model, Decoder) else WholeModel(model)


def shares_blocks(reader: Reader) -> bool:
    """Whether a process must walk through the model even if it has no text, since others need its blocks."""
    return isinstance(reader, Decoder) and reader.owner is not None


@torch.no_grad()
def measure_quality(
    dense: Decoder | PreTrainedModel,
    models: Mapping[str, Decoder | PreTrainedModel],
    tokens: Tensor,
    *,
    batch_tokens: int,
    predicted: Tensor | None = None,
    memory: HiddenMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Quality]:
    """Measure several models on the same tokens by all metrics of tokens; processes share the sequences.

    `tokens` is [n, t] held-out text. `predicted`, [n, t] bool, says which of them are predicted, never the first of a
    sequence; what stands behind the last of them isn't read. None takes all but the first. Models are decoders, or
    whole models of transformers. The dense model, with which the others are compared, may be among them. Streams of
    decoders may go where `memory` says. One walk takes all batches, so that weights are read once. `progress` gets the
    finished passes of a batch through a model, and all of them.

    Raises NumericsError if a figure isn't finite.
    """
    metrics = token_metrics()
    reference = reading(dense)
    named = {name: reference if model is dense else reading(model) for name, model in models.items()}
    readers: list[Reader] = [reference]
    for reader in named.values():
        if all(reader is not known for known in readers):
            readers.append(reader)
    share = tokens[parallel.place() :: parallel.size()]
    batches: list[tuple[Tensor, Tensor | None]] = []
    if predicted is None and len(share):
        batches = [(batch, None) for batch in torch.split(share, max(1, batch_tokens // tokens.shape[1]))]
    elif predicted is not None:
        mask = predicted[parallel.place() :: parallel.size()]
        for rows, width in batches_by_length(lengths_of(mask), batch_tokens):
            batches.append((share[rows, :width], mask[rows, :width].roll(-1, 1)))
    sums = torch.zeros(len(readers), len(metrics), dtype=torch.float64)
    with parallel.agree(), kept_memory(reference.device):
        for of_batch in _measured(metrics, readers, batches, memory, progress):
            sums += of_batch
    sums = parallel.all_reduce(sums)
    count = tokens.numel() if predicted is None else int(predicted.sum())
    predictions = count - (len(tokens) if predicted is None else 0)
    qualities = {}
    for name, reader in named.items():
        totals = sums[next(row for row, known in enumerate(readers) if known is reader)]
        if not bool(totals.isfinite().all()):
            raise NumericsError(f"the losses of {name} aren't finite (NaN or infinity): try float32, or another model")
        values = {
            metric.name: metric.reduced(total / (predictions if metric.next_token else count))
            for metric, total in zip(metrics, totals.tolist(), strict=True)
        }
        qualities[name] = Quality(values, predictions)
    return qualities


def _measured(
    metrics: Sequence[TokenMetric],
    readers: Sequence[Reader],
    batches: Sequence[tuple[Tensor, Tensor | None]],
    memory: HiddenMemory | None,
    progress: Callable[[int, int], None],
) -> Iterator[Tensor]:
    """Sums of the metrics over each batch and its mask, as those of `_measure_batch`; models are read in one walk."""
    if not batches and not any(shares_blocks(reader) for reader in readers):
        return
    n_whole, passes = sum(isinstance(reader, WholeModel) for reader in readers), 0
    with ExitStack() as heads:
        walks = []
        for reader in readers:
            walks.append(iter(reader.through([batch for batch, _ in batches], memory=memory)))
            if not isinstance(reader, WholeModel):
                passes += len(batches)
                progress(passes, len(readers) * len(batches))
        for reader in readers:
            heads.enter_context(reader.with_head(readers[0]))
        for batch, mask in batches:
            yield _measure_batch(metrics, readers, [next(walk).flatten(0, 1) for walk in walks], batch, mask)
            if n_whole:  # their passes are made here
                passes += n_whole
                progress(passes, len(readers) * len(batches))


def _measure_batch(
    metrics: Sequence[TokenMetric],
    readers: Sequence[Reader],
    states: Sequence[Tensor],
    batch: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Sums of the metrics over a batch [b, t], float64 [models, metrics].

    The first model is the reference. A mask [b, t] selects tokens whose successors count. A separate function, so that
    states are released after each batch.
    """
    device = states[0].device
    # The last position has no next token. It is left out below, because slicing here would copy.
    following, size = batch.roll(-1, 1).flatten().to(device), readers[0].head_tokens
    if mask is not None:
        following, *states = (tensor[mask.flatten().to(tensor.device)] for tensor in (following, *states))
    figures = {
        metric.name: torch.empty(len(readers), len(following), dtype=torch.float32, device=device) for metric in metrics
    }
    for start in range(0, len(following), size):
        piece = slice(start, start + size)
        dense: DensePredictions | None = None
        for row, (reader, state) in enumerate(zip(readers, states, strict=True)):
            logits = reader.head(state[piece])
            if dense is None:
                dense = DensePredictions(logits)
            predictions = Predictions(dense, logits, following[piece])
            for metric in metrics:
                figures[metric.name][row, piece] = metric.of(predictions)
            del predictions, logits
    sums = []
    for metric in metrics:
        values = exact(figures[metric.name]).double()
        if mask is None:
            values = values.view(len(readers), *batch.shape)
            if metric.next_token:
                values[:, :, -1] = 0
        sums.append(values.sum([*range(1, values.ndim)]))
    return torch.stack(sums, 1).cpu()
