"""Tokens per second of several models, timed alternately so that drift of the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.runtime.compute import now
from darwinlm.steps.evaluate.metric import TimedRounds
from darwinlm.steps.own_text.continuations import greedy_continuations
from darwinlm.steps.own_text.script import is_chat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Rewrite in the past tense: I walk to the market and buy bread.",
)
"""Prompts for chat models: a fact, knowledge to be put together, and work on text that is given."""
BEGINNINGS = ("The capital of France is", "Water boils when", "To make bread, you first")
"""Prompts for other models."""

NEW_TOKENS, TIMED_TOKENS = 32, 16
"""Most tokens of a continuation, and those of a timed one."""

WARM_TOKENS = 2
"""Tokens of a continuation that warms up: a prompt, and one token after it."""

SPEED_ROUNDS, SPEED_SECONDS = 3, 60.0
"""Most timed rounds, and seconds after which no further one begins. A single round tells no difference."""


@torch.no_grad()
def measure_speed(models: Mapping[str, PreTrainedModel], prompt: Tensor) -> dict[str, TimedRounds]:
    """Time prompt processing and decoding: one warm-up, then up to `SPEED_ROUNDS` rounds over all models.

    The prompt is [1, t] tokens. Rates don't include the warm-up.
    """
    prompts: dict[str, list[float]] = {name: [] for name in models}
    decodes: dict[str, list[float]] = {name: [] for name in models}
    timed = 0.0
    for number in range(SPEED_ROUNDS + 1):
        for name, model in models.items():
            tokens = prompt.to(model.device)
            seconds = _seconds(partial(model, input_ids=tokens, use_cache=False), model.device)
            new = TIMED_TOKENS if number else WARM_TOKENS
            decoding = _seconds(partial(_decode, model, tokens[:, :16], new), model.device)
            if number:
                prompts[name].append(prompt.shape[1] / seconds)
                decodes[name].append(TIMED_TOKENS / decoding)
                timed += seconds + decoding
        if number and timed > SPEED_SECONDS:
            break
    return {name: TimedRounds(tuple(prompts[name]), tuple(decodes[name])) for name in models}


@torch.no_grad()
def measure_reading_speed(models: Mapping[str, PreTrainedModel], prompt: Tensor) -> dict[str, TimedRounds]:
    """Time the reading of a text [1, t] by models that write none, as `measure_speed`."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    timed = 0.0
    for number in range(SPEED_ROUNDS + 1):
        for name, model in models.items():
            seconds = _seconds(partial(model, input_ids=prompt.to(model.device), use_cache=False), model.device)
            if number:
                rates[name].append(prompt.shape[1] / seconds)
                timed += seconds
        if number and timed > SPEED_SECONDS:
            break
    return {name: TimedRounds(tuple(of_model), ()) for name, of_model in rates.items()}


def _decode(model: PreTrainedModel, tokens: Tensor, new: int) -> None:
    """Continue a prompt greedily; the arguments override the checkpoint's generation_config.json."""
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        max_new_tokens=new,
        min_new_tokens=new,  # so that a model that ends its text early doesn't look fast
        pad_token_id=0,
    )


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    begun = now(device)
    action()
    return now(device) - begun


def prompts_for(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The prompts that suit a model."""
    return QUESTIONS if is_chat(tokenizer) else BEGINNINGS


@torch.no_grad()
def continue_greedily(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: tuple[str, ...]
) -> list[str]:
    """Greedy answer of a chat model to each prompt, or else its continuation; both without the prompt."""
    inputs: list[list[int]] = []
    chat = is_chat(tokenizer)
    for prompt in prompts:
        text = prompt
        if chat:
            messages = [{"role": "user", "content": prompt}]
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        inputs.append(tokenizer(text, add_special_tokens=text == prompt)["input_ids"])
    return greedy_continuations(model, tokenizer, inputs, NEW_TOKENS)
