"""The trained model: its trainable weights, and its losses.

Losses are computed from the last residual stream in pieces, so that the logits of a whole batch never exist at once.
The computation between decoder and logits (head, scaling, soft caps) is the family's own forward pass, with a stored
result in place of the decoder's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from darwinlm.model.families.family import family_of
from darwinlm.model.walk import items
from darwinlm.model.walk.apart import apart
from darwinlm.model.walk.chunks import chunked_loss, next_tokens
from darwinlm.model.walk.decoder import KnownResult
from darwinlm.steps.recover.losses import forward_kl, next_token_loss
from darwinlm.steps.recover.recovery_losses import ForwardKL, NextToken, RecoveryLoss
from darwinlm.steps.recover.recovery_settings import RecoverySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_TOKENS, LOGITS = 1024, 1 << 26
"""Most tokens whose logits are in memory at once, and most numbers in them: 2 GB at the peak."""


def logit_tokens(vocabulary: int) -> int:
    """Tokens whose logits are in memory at once."""
    return min(LOGIT_TOKENS, max(LOGITS // vocabulary, 1))


def prepared(model: PreTrainedModel, settings: RecoverySettings) -> PreTrainedModel:
    """The model with its trainable weights: all, or all but embedding and head; a pooler behind the states isn't read.

    Dropouts are off: with BERT's, a distillation ended further from the dense model (docs/notebook/reading.md).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if settings.gradient_checkpointing:
        options = {"use_reentrant": False}
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    experts = family_of(model.config).mlp.experts
    # It only changes the choice of experts. Like a pooler, it gets no gradient, for which DDP would wait.
    still = experts.correction if experts is not None else None
    for name, weight in model.named_parameters():
        weight.requires_grad = not name.startswith("pooler.") and (still is None or not name.endswith(still))
    if not settings.trains_embeddings:
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                module.requires_grad_(requires_grad=False)
    return model


class _Result(BaseModelOutputWithPast):  # type: ignore[misc]
    """Result of a decoder. Fields that some families add, such as the logits of routers, are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _stored(model: PreTrainedModel, hidden: Tensor) -> Iterator[None]:
    decoder = decoder_of(model)
    setattr(model, model.base_model_prefix, KnownResult(_Result(last_hidden_state=hidden)))
    try:
        yield
    finally:
        setattr(model, model.base_model_prefix, decoder)


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [n, v] of residual streams [n, m] after the last block and the final norm."""
    with _stored(model, hidden[None]):
        # The forward of the class, since that of the instance may be the caller.
        tokens = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        result: Tensor = type(model).forward(model, input_ids=tokens, use_cache=False).logits[0]
    return result


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head."""
    decoder: nn.Module = model.base_model
    return decoder


def streams_of(model: PreTrainedModel, tokens: Tensor, *, marked: bool = False) -> Tensor:
    """Residual streams of tokens [b, t] after the final norm, [b, t, m].

    `marked` says whether the sequences hold items; to find out from tokens on a GPU, the host would wait for it.
    """
    places = apart(model, tokens) if marked else {}
    ids = items.ids(tokens) if marked else tokens
    hidden: Tensor = decoder_of(model)(input_ids=ids, use_cache=False, **places).last_hidden_state
    return hidden


def _at_once(model: PreTrainedModel) -> int:
    return logit_tokens(len(model.get_output_embeddings().weight))


@torch.no_grad()
def run_dense(teacher: PreTrainedModel, tokens: Tensor, *, marked: bool = False) -> Tensor:
    """Residual streams of the dense model on tokens [b, t] after its final norm, [b, t, m]; see `streams_of`."""
    return streams_of(teacher, tokens, marked=marked)


def batch_loss(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokens: Tensor,
    dense: Tensor | None,
    losses: Sequence[tuple[float, RecoveryLoss]],
    *,
    again: bool = False,
) -> Tensor:
    """Mean loss per token of a batch, a differentiable scalar.

    Tokens are [b, t], `dense` the dense model's streams on them, [b, t, m]. `losses` are the terms with their weights;
    if none needs the dense model, it and its streams are None. `again` is that of `chunked_loss`.
    """
    hidden, following = streams_of(model, tokens).flatten(0, 1), next_tokens(tokens)
    n_following = tokens[:, 1:].numel()
    flat = None if dense is None else dense.flatten(0, 1)

    def reference(rows: slice) -> Tensor | None:
        with torch.no_grad():
            return None if flat is None else logits_of(teacher, flat[rows])

    def loss_of(rows: slice, part: Tensor) -> Tensor:
        logits, expected = logits_of(model, part), reference(rows)
        total = logits.new_zeros((), dtype=torch.float32)
        for weight, loss in losses:
            of_rows = loss.summed(logits, given_to(loss, expected, following[rows]))
            total = total + weight * of_rows / (len(hidden) if loss.dense else n_following)
        return total

    # The trained weights between the last residual stream and the logits, including a tied embedding.
    head = [weight for weight in model.get_output_embeddings().parameters() if weight.requires_grad]
    return chunked_loss(loss_of, hidden, head, _at_once(model), again=again)


def given_to(loss: RecoveryLoss, dense: Tensor | None, following: Tensor) -> Tensor:
    """What a loss compares logits with: those of the dense model, [n, v], or the next tokens, [n]."""
    if not loss.dense:
        return following
    assert dense is not None, "the dense model is there if a loss needs it"
    return dense


@dataclass
class HeldOutSums:
    """Sums over held-out text: cross-entropy, distance to the dense model, and a registered loss; 0 if not asked for.

    Attributes:
        kl: Of a language model it is the KL.
        predicted: Number of predicted tokens, over which the cross-entropy is summed.
        compared: Number of tokens or texts that are compared with the dense model.
    """

    next_token: float = 0.0
    kl: float = 0.0
    loss: float = 0.0
    predicted: int = 0
    compared: int = 0


@torch.no_grad()
def held_out_sums(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokens: Tensor,
    dense: Tensor | None,
    other: RecoveryLoss | None = None,
) -> HeldOutSums:
    """Sums over tokens [b, t]; `dense` holds the dense model's streams on them, [b, t, m], if there is one."""
    hidden, following = streams_of(model, tokens).flatten(0, 1), next_tokens(tokens)
    sums, most = HeldOutSums(predicted=tokens[:, 1:].numel(), compared=tokens.numel()), _at_once(model)
    for start in range(0, len(hidden), most):
        piece = slice(start, start + most)
        logits = logits_of(model, hidden[piece])
        sums.next_token += float(next_token_loss(logits, following[piece]))
        expected = None if dense is None else logits_of(teacher, dense.flatten(0, 1)[piece])
        if expected is not None:
            sums.kl += float(forward_kl(logits, expected))
        if other is not None:
            sums.loss += float(other.summed(logits, given_to(other, expected, following[piece])))
    return sums


def measured_apart(settings: RecoverySettings) -> RecoveryLoss | None:
    """The loss of the settings if it is neither the KL nor the cross-entropy, which are measured on held-out text."""
    known = not settings.distillation or type(settings.loss) in (ForwardKL, NextToken)
    return None if known else settings.loss


class Losses(nn.Module):
    """A model whose call returns losses, because DDP and FSDP only act on a module's call."""

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None,
        settings: RecoverySettings,
        low: torch.dtype | None,
        *,
        sharded: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = (teacher,)  # a tuple, so that it isn't a submodule
        self.terms = settings.terms
        self.apart = measured_apart(settings)
        self.low = low
        self.sharded = sharded

    def forward(self, tokens: Tensor, dense: Tensor | None = None, *, held_out: bool = False) -> Tensor | HeldOutSums:
        """`batch_loss` of tokens [b, t], or `held_out_sums` of them, with the dense model's streams."""
        (teacher,) = self.teacher
        with torch.autocast(tokens.device.type, self.low, enabled=self.low is not None):
            if held_out:
                return held_out_sums(self.model, teacher, tokens, dense, self.apart)
            return batch_loss(self.model, teacher, tokens, dense, self.terms, again=self.sharded)
