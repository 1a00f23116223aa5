"""Greedy continuations of many prompts at once: a step of a batch takes hardly longer than that of one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from darwinlm.steps.own_text.script import end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS_AT_ONCE, TOKENS_AT_ONCE = 64, 1 << 14
"""Most prompts that are continued together, and most tokens of these with their answers."""


def greedy_continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Sequence[Sequence[int]], new_tokens: int
) -> list[str]:
    """The most likely continuation of each prompt of tokens, of at most `new_tokens` tokens, up to the model's end."""
    ends = end_tokens(model, tokenizer)
    answers: list[str] = []
    remaining = list(inputs)
    while remaining:
        batch = _together(remaining, new_tokens)
        remaining = remaining[len(batch) :]
        longest = max(map(len, batch))
        padding = [longest - len(prompt) for prompt in batch]
        ids = [[0] * count + list(prompt) for count, prompt in zip(padding, batch, strict=True)]
        mask = [[0] * count + [1] * (longest - count) for count in padding]
        # Of the prompts, the head reads the last tokens; torch would copy its weights for every such strided row.
        with model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),)):
            output = model.generate(
                torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                repetition_penalty=1.0,
                max_new_tokens=new_tokens,
                eos_token_id=list(ends) or None,
                pad_token_id=ends[0] if ends else 0,
            )
        for new in output[:, longest:].tolist():
            end = next((place for place, token in enumerate(new) if token in ends), len(new))
            answers.append(str(tokenizer.decode(new[:end], skip_special_tokens=True)))
    return answers


def _together(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Sequence[int]]:
    """The first prompts that are continued in one batch; at least one."""
    count, longest = 0, 0
    for prompt in prompts[:PROMPTS_AT_ONCE]:
        longest = max(longest, len(prompt) + new_tokens)
        if count and (count + 1) * longest > TOKENS_AT_ONCE:
            break
        count += 1
    return list(prompts[:count])
