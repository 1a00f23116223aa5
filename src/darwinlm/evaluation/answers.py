"""How close models are to the dense model on answers that the dense model has written itself.

Letters: n tokens, v vocabulary. All figures are of next tokens of answers, given the prompt and the earlier tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.evaluation.quality import reading
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact
from darwinlm.runtime.figures import AnswerFigures
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.text.sampling.sampler import Sampled, Sampler
from darwinlm.text.sampling.script import chats

FIRST = 1 << 40
"""Number of the first chat, which no text for pruning reaches."""
LENGTH = 512
"""Maximum number of tokens of a chat."""
CHATS_AT_ONCE = 16
"""Chats that a process begins before it counts their tokens."""


@dataclass(frozen=True)
class Answers:
    """Chats [n, t], padded on the right with 0, and whether each token belongs to an answer, [n, t] bool."""

    tokens: Tensor
    answer: Tensor


@torch.no_grad()
def write_answers(dense: Any, tokenizer: Any, tokens: int) -> Answers | str:
    """Let the dense model write chats with at least `tokens` answer tokens, or the reason why it can't.

    Processes share the work. Chats without an answer are left out.
    """
    length = min(LENGTH, getattr(dense.config, "max_position_embeddings", None) or LENGTH)
    script = chats(dense, tokenizer, length)
    if isinstance(script, str):
        return script
    sampler = Sampler(dense, script.prefix, script.segments, length, 0)
    written: list[Sampled] = []
    number, count, wanted = FIRST + parallel.place(), 0, -(-tokens // parallel.size())
    most = wanted // CHATS_AT_ONCE + CHATS_AT_ONCE  # so that a model without answers comes to an end
    while count < wanted and len(written) < most:
        numbers = range(number, number + CHATS_AT_ONCE * parallel.size(), parallel.size())
        number = numbers.stop
        for sampled in sampler.sample(iter(numbers)):
            written.append(sampled)
            count += len(sampled.tokens) - sampled.begins[1] if len(sampled.begins) > 1 else 0
    together = sorted((each for part in parallel.gather(written) for each in part), key=lambda each: each.number)
    together = [each for each in together if len(each.begins) > 1 and len(each.tokens) > each.begins[1]]
    if not together:
        return "the dense model doesn't end the user's turn"
    padded = torch.zeros(len(together), max(len(each.tokens) for each in together), dtype=torch.int64)
    answer = torch.zeros_like(padded, dtype=torch.bool)
    for row, each in enumerate(together):
        padded[row, : len(each.tokens)] = torch.tensor(each.tokens)
        answer[row, each.begins[1] : len(each.tokens)] = True
    return Answers(padded, answer)


@torch.no_grad()
def measure_answers(
    dense: Any, models: Mapping[str, Any], answers: Answers, *, batch_tokens: int, memory: HiddenMemory | None = None
) -> dict[str, AnswerFigures]:
    """Compare models with the dense one on its answers; processes share the chats.

    Models are decoders, or whole models of transformers; streams of decoders may go where `memory` says.
    """
    rows = list(parallel.mine(range(len(answers.tokens))))
    size = max(1, batch_tokens // answers.tokens.shape[1])
    batches = [answers.tokens[rows[start : start + size]] for start in range(0, len(rows), size)]
    predicts = answers.answer[rows].roll(-1, 1)
    predicts[:, -1] = False
    readers = [reading(model) for model in (dense, *models.values())]
    found: list[Tensor] = []
    walks = [reader.through(batches, memory=memory) for reader in readers]
    with ExitStack() as heads:
        for reader in readers:
            heads.enter_context(reader.with_head(readers[0]))
        for mask, *states in zip(torch.split(predicts, size) if rows else (), *walks, strict=True):
            chosen = mask.to(states[0].device)
            pieces = (torch.split(each[chosen], readers[0].head_tokens) for each in states)
            for piece in zip(*pieces, strict=True):
                reference, *others = (reader.head(state) for reader, state in zip(readers, piece, strict=True))
                found.append(closeness(reference, others).cpu())
    together = torch.cat([part for share in parallel.gather(found) for part in share], 2)
    return {name: _figures(figures) for name, figures in zip(models, together, strict=True)}


def closeness(dense: Tensor, others: Sequence[Tensor]) -> Tensor:
    """KL(dense ‖ model) and whether both rank the same token first, from logits [n, v] of k other models.

    Returns [k, 2, n] float32.
    """
    distribution, first = DenseDistribution(dense), dense.argmax(-1)
    figures = [
        torch.stack((distribution.kl(logits).clamp_(min=0), (logits.argmax(-1) == first).float())) for logits in others
    ]
    return torch.stack(figures)


def _figures(closeness: Tensor) -> AnswerFigures:
    kl, agreed = exact(closeness).double().mean(1).tolist()
    return AnswerFigures(tokens=closeness.shape[1], kl=kl, agreement=agreed)
