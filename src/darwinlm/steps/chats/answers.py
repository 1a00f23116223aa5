"""Figures of chat models: closeness to the dense one on answers that it has written itself, and coding tasks.

Closeness is that of next tokens of answers, given the prompt and the earlier tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ModelError
from darwinlm.steps.chats.chat_figures import AnswerFigures, ChatFigures
from darwinlm.steps.chats.code import compare_code, write_code
from darwinlm.steps.evaluate.metric import token_metrics
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.own_text.sampler import Sampled, Sampler
from darwinlm.steps.own_text.script import chats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from darwinlm.formats.opened import Opened
    from darwinlm.model.walk.decoder import Decoder

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
def write_answers(dense: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Answers | str:
    """Let the dense model write chats with at least `tokens` answer tokens, or the reason why it can't.

    Processes share the work. Chats without an answer are left out.
    """
    length = min(LENGTH, getattr(dense.config, "max_position_embeddings", None) or LENGTH)
    script = chats(dense, tokenizer, length)
    if isinstance(script, str):
        return script
    sampler = Sampler(dense, script.prefix, script.segments, length, 0)
    written: list[Sampled] = []
    number, count = FIRST + parallel.place(), 0
    requested = -(-tokens // parallel.size())
    limit = requested // CHATS_AT_ONCE + CHATS_AT_ONCE  # so that a model without answers comes to an end
    while count < requested and len(written) < limit:
        numbers = range(number, number + CHATS_AT_ONCE * parallel.size(), parallel.size())
        number = numbers.stop
        for sampled in sampler.sample(iter(numbers)):
            written.append(sampled)
            count += len(sampled.tokens) - sampled.begins[1] if len(sampled.begins) > 1 else 0
    gathered = sorted((chat for part in parallel.gather(written) for chat in part), key=lambda chat: chat.number)
    answered = [chat for chat in gathered if len(chat.begins) > 1 and len(chat.tokens) > chat.begins[1]]
    if not answered:
        return "the dense model doesn't end the user's turn"
    padded = torch.zeros(len(answered), max(len(chat.tokens) for chat in answered), dtype=torch.int64)
    answer = torch.zeros_like(padded, dtype=torch.bool)
    for row, chat in enumerate(answered):
        padded[row, : len(chat.tokens)] = torch.tensor(chat.tokens)
        answer[row, chat.begins[1] : len(chat.tokens)] = True
    return Answers(padded, answer)


def measure_answers(
    dense: Decoder | PreTrainedModel,
    models: Mapping[str, Decoder | PreTrainedModel],
    answers: Answers,
    *,
    batch_tokens: int,
    memory: HiddenMemory | None = None,
) -> dict[str, AnswerFigures]:
    """Compare models with the dense one on its answers; processes share the chats.

    Models are decoders, or whole models of transformers; streams of decoders may go where `memory` says.
    """
    quality = measure_quality(
        dense, models, answers.tokens, batch_tokens=batch_tokens, predicted=answers.answer, memory=memory
    )
    names = [metric.name for metric in token_metrics(comparing=True)]
    return {
        name: AnswerFigures(tokens=figures.tokens, metrics={metric: figures.values[metric] for metric in names})
        for name, figures in quality.items()
    }


def measure_chats(models: Mapping[str, Opened], *, tokens: int, batch_tokens: int) -> ChatFigures:
    """Measure a model against the dense one; processes share the work.

    `models` are these two by name. The dense one writes at least `tokens` tokens of answers.
    Raises ModelError if the models can't chat.
    """
    (name, small), (original, dense) = models.items()
    written = write_answers(dense.model, small.tokenizer, tokens)
    if isinstance(written, str):
        raise ModelError(f"{original} writes no chats: {written}")
    readers = {name: small.decoder(written.tokens)}
    answers = measure_answers(dense.decoder(written.tokens), readers, written, batch_tokens=batch_tokens)
    blocks = {key: write_code(model.model, small.tokenizer) for key, model in models.items()}
    code = {key: compare_code(codes, blocks[original]) for key, codes in blocks.items()}
    return ChatFigures(answers=answers, code={key: figures for key, figures in code.items() if figures is not None})
