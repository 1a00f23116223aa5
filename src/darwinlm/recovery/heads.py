"""From the last residual stream to losses a piece at a time, so that no logits of a whole batch exist at once.

What a family does between its decoder and its logits (head, scaling, soft caps) is its own forward, entered with a
stored result in place of the decoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from darwinlm.recovery.chunks import chunked_loss
from darwinlm.recovery.losses import TopK, forward_kl, next_token_loss, top_k_kl, top_of

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Objective:
    """What training makes small.

    Attributes:
        distillation: Weight of the KL to the dense model.
        cross_entropy: Weight of the loss of the next token.
        temperature: Temperature of both distributions.
        top_k: Logits of the dense model that are used; None uses all.
        chunk: Tokens whose logits exist at once.
        again: Make them a second time on the way back, see `chunked_loss`.
    """

    distillation: float = 1.0
    cross_entropy: float = 0.0
    temperature: float = 1.0
    top_k: int | None = None
    chunk: int = 1024
    again: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether a dense model takes part."""
        return self.distillation > 0


class _Stored(nn.Module):
    """Stands in for a decoder whose result is known."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


@contextmanager
def _stored(model: Any, hidden: Tensor) -> Iterator[None]:
    name = model.base_model_prefix
    decoder = getattr(model, name)
    setattr(model, name, _Stored(hidden))
    try:
        yield
    finally:
        setattr(model, name, decoder)


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Logits [n, v] of residual streams [n, m] behind the last block and the final norm."""
    with _stored(model, hidden[None]):
        # The class's own forward: the instance's may be the one that calls this.
        tokens = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        result: Tensor = type(model).forward(model, input_ids=tokens, use_cache=False).logits[0]
    return result


def _head_weights(model: Any) -> list[Tensor]:
    """The trained weights between the last residual stream and the logits, be they the embedding's as well."""
    return [weight for weight in model.get_output_embeddings().parameters() if weight.requires_grad]


def decoder_of(model: Any) -> nn.Module:
    """The model without its head."""
    found: nn.Module = getattr(model, model.base_model_prefix)
    return found


@dataclass(frozen=True)
class Dense:
    """What the dense model gave for a batch: just now, or when its likeliest tokens were stored.

    Attributes:
        hidden: [b, t, m] behind its final norm; None where `top` stands for it.
        top: [b, t, k] its likeliest tokens at the objective's temperature, as they were stored.
    """

    hidden: Tensor | None
    top: TopK | None = None

    @property
    def flat(self) -> Tensor | TopK:
        """What the model's logits are compared with, a row for each token."""
        if self.top is not None:
            return self.top.flatten()
        assert self.hidden is not None, "a dense model's result is its residual streams or its likeliest tokens"
        return self.hidden.flatten(0, 1)


@torch.no_grad()
def run_dense(teacher: Any, tokens: Tensor) -> Dense:
    """Run the dense model over tokens [b, t]."""
    return Dense(decoder_of(teacher)(input_ids=tokens, use_cache=False).last_hidden_state)


@torch.no_grad()
def dense_top(teacher: Any, tokens: Tensor, k: int, temperature: float, chunk: int) -> TopK:
    """The dense model's k likeliest tokens behind every one of tokens [b, t], as [b, t, k]."""
    hidden = decoder_of(teacher)(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)
    parts = [top_of(logits_of(teacher, part), k, temperature) for part in torch.split(hidden, chunk)]
    joined = (torch.cat(of) for of in zip(*((part.log_p, part.places, part.log_rest) for part in parts), strict=True))
    log_p, places, log_rest = (tensor.reshape(*tokens.shape, *tensor.shape[1:]) for tensor in joined)
    return TopK(log_p, places, log_rest)


def batch_loss(model: Any, teacher: Any, tokens: Tensor, dense: Dense | None, objective: Objective) -> Tensor:
    """Mean loss per token of a batch, a scalar that can be differentiated with respect to the model.

    Args:
        model: The smaller model.
        teacher: The dense model; None where the objective needs none.
        tokens: [b, t].
        dense: Outputs of the dense model for them.
        objective: Terms of the loss.
    """
    hidden = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)
    following = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1).flatten()
    counts = (len(hidden), int((following >= 0).sum()))
    reference = None if dense is None else dense.flat

    def loss_of(rows: slice, part: Tensor) -> Tensor:
        behind = None if reference is None else reference[rows]
        return _chunk_loss(model, teacher, part, behind, following[rows], objective, counts)

    return chunked_loss(loss_of, hidden, _head_weights(model), objective.chunk, again=objective.again)


def _chunk_loss(
    model: Any,
    teacher: Any,
    hidden: Tensor,
    behind: Tensor | TopK | None,
    following: Tensor,
    objective: Objective,
    counts: tuple[int, int],
) -> Tensor:
    logits = logits_of(model, hidden)
    loss = logits.new_zeros((), dtype=torch.float32)
    if objective.distillation > 0 and behind is not None:
        if isinstance(behind, TopK):
            divergence = top_k_kl(logits, behind, temperature=objective.temperature)
        else:
            with torch.no_grad():
                dense = logits_of(teacher, behind)
            divergence = forward_kl(logits, dense, temperature=objective.temperature, top_k=objective.top_k)
        loss = loss + objective.distillation * divergence / counts[0]
    if objective.cross_entropy > 0:
        loss = loss + objective.cross_entropy * next_token_loss(logits, following) / counts[1]
    return loss


@torch.no_grad()
def held_out_sums(model: Any, teacher: Any, tokens: Tensor, chunk: int) -> tuple[float, float]:
    """Sums of the cross-entropy and of the KL to the dense model over tokens [b, t]; without one it is 0."""
    hidden = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)
    behind = None
    if teacher is not None:
        behind = decoder_of(teacher)(input_ids=tokens, use_cache=False).last_hidden_state.flatten(0, 1)
    following = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1).flatten()
    loss = divergence = 0.0
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        logits = logits_of(model, hidden[rows])
        loss += float(next_token_loss(logits, following[rows]))
        if behind is not None:
            divergence += float(forward_kl(logits, logits_of(teacher, behind[rows])))
    return loss, divergence
