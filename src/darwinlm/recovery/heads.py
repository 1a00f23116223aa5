"""From the last residual stream to losses in pieces, so that the logits of a whole batch never exist at once.

The computation between decoder and logits (head, scaling, soft caps) is the family's own forward pass, with a stored
result in place of the decoder's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from darwinlm.evaluation.chunks import chunked_loss
from darwinlm.recovery.losses import TopK, forward_kl, next_token_loss, top_k_kl, top_of

LOGIT_CHUNK = 1024
"""Tokens whose logits are in memory at once: 4 GB at the peak for a vocabulary of 131,072."""


@dataclass(frozen=True)
class Objective:
    """The training objective.

    Attributes:
        distillation: Weight of the KL to the dense model; the next-token loss has the rest.
        chunk: Tokens whose logits are in memory at once.
        again: Whether to compute them again in the backward pass; see `chunked_loss`.
    """

    distillation: float = 1.0
    chunk: int = LOGIT_CHUNK
    again: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether the dense model is needed."""
        return self.distillation > 0


class _Result(BaseModelOutputWithPast):  # type: ignore[misc]
    """Result of a decoder. Fields that some families add, such as the logits of routers, are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Stored(nn.Module):
    """Replaces a decoder whose result is known."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> _Result:
        return _Result(last_hidden_state=self.hidden)


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
    """Logits [n, v] of residual streams [n, m] after the last block and the final norm."""
    with _stored(model, hidden[None]):
        # The forward of the class, since that of the instance may be the caller.
        tokens = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        result: Tensor = type(model).forward(model, input_ids=tokens, use_cache=False).logits[0]
    return result


def decoder_of(model: Any) -> nn.Module:
    """The model without its head."""
    decoder: nn.Module = getattr(model, model.base_model_prefix)
    return decoder


Dense = Tensor | TopK
"""Outputs of the dense model for a batch: residual streams [b, t, m] after its final norm, or stored most likely tokens
[b, t, k]."""


@torch.no_grad()
def run_dense(teacher: Any, tokens: Tensor) -> Tensor:
    """Residual streams of the dense model on tokens [b, t] after its final norm, [b, t, m]."""
    hidden: Tensor = decoder_of(teacher)(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden


@torch.no_grad()
def dense_top(teacher: Any, tokens: Tensor, k: int) -> TopK:
    """The dense model's k most likely next tokens after each of tokens [b, t], [b, t, k]."""
    hidden = _streams(teacher, tokens)
    parts = [top_of(logits_of(teacher, part), k) for part in torch.split(hidden, LOGIT_CHUNK)]
    joined = (torch.cat(of) for of in zip(*((part.log_p, part.places, part.log_rest) for part in parts), strict=True))
    log_p, places, log_rest = (tensor.reshape(*tokens.shape, *tensor.shape[1:]) for tensor in joined)
    return TopK(log_p, places, log_rest)


def _streams(model: Any, tokens: Tensor) -> Tensor:
    """Residual streams [b·t, m] of tokens [b, t] after the final norm."""
    hidden: Tensor = decoder_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def _next_tokens(tokens: Tensor) -> Tensor:
    """Next token of each of tokens [b, t], [b·t]; -1 at the end of a sequence."""
    return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1).flatten()


def batch_loss(model: Any, teacher: Any, tokens: Tensor, dense: Dense | None, objective: Objective) -> Tensor:
    """Mean loss per token of a batch, a differentiable scalar.

    Tokens are [b, t]. The dense model is None if the objective doesn't need it.
    """
    hidden = _streams(model, tokens)
    following = _next_tokens(tokens)
    counts = (len(hidden), int((following >= 0).sum()))
    flat = None if dense is None else dense.flatten(0, 1)

    def loss_of(rows: slice, part: Tensor) -> Tensor:
        reference = None if flat is None else flat[rows]
        return _chunk_loss(model, teacher, part, reference, following[rows], objective, counts)

    # The trained weights between the last residual stream and the logits, including a tied embedding.
    head = [weight for weight in model.get_output_embeddings().parameters() if weight.requires_grad]
    return chunked_loss(loss_of, hidden, head, objective.chunk, again=objective.again)


def _chunk_loss(
    model: Any,
    teacher: Any,
    hidden: Tensor,
    reference: Tensor | TopK | None,
    following: Tensor,
    objective: Objective,
    counts: tuple[int, int],
) -> Tensor:
    logits = logits_of(model, hidden)
    loss = logits.new_zeros((), dtype=torch.float32)
    if objective.distillation > 0 and reference is not None:
        if isinstance(reference, TopK):
            divergence = top_k_kl(logits, reference)
        else:
            with torch.no_grad():
                dense = logits_of(teacher, reference)
            divergence = forward_kl(logits, dense)
        loss = loss + objective.distillation * divergence / counts[0]
    if objective.distillation < 1:
        loss = loss + (1 - objective.distillation) * next_token_loss(logits, following) / counts[1]
    return loss


@torch.no_grad()
def held_out_sums(model: Any, teacher: Any, tokens: Tensor, dense: Tensor | None, chunk: int) -> tuple[float, float]:
    """Sums of the cross-entropy and of the KL to the dense model over tokens [b, t].

    `dense` holds its streams on them, [b, t, m]; without them, KL is 0.
    """
    hidden = _streams(model, tokens)
    reference = None if dense is None else dense.flatten(0, 1)
    following = _next_tokens(tokens)
    loss = divergence = 0.0
    for start in range(0, len(hidden), chunk):
        piece = slice(start, start + chunk)
        logits = logits_of(model, hidden[piece])
        loss += float(next_token_loss(logits, following[piece]))
        if reference is not None:
            divergence += float(forward_kl(logits, logits_of(teacher, reference[piece])))
    return loss, divergence
