"""Greedy continuations: those of each prompt alone, whatever stands beside it, in batches that fit."""

import pytest
import torch
from tests.tiny.tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

from darwinlm.steps.own_text import continuations
from darwinlm.steps.own_text.continuations import greedy_continuations

PROMPTS = [[5, 9, 3], [7], [4, 8, 15, 16, 23, 42, 11], [6, 6], [31, 2, 8, 8, 1, 9, 20]]


@pytest.mark.parametrize(("prompts", "tokens", "sizes"), [(64, 1000, [5]), (2, 1000, [2, 2, 1]), (64, 27, [3, 2])])
def test_prompts_are_continued_as_alone(tiny_llama, monkeypatch, prompts, tokens, sizes):
    """With two new tokens, the first three prompts take 27 tokens together, padding included."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), tiny_tokenizer()
    alone = [greedy_continuations(model, tokenizer, [prompt], 2)[0] for prompt in PROMPTS]
    monkeypatch.setattr(continuations, "PROMPTS_AT_ONCE", prompts)
    monkeypatch.setattr(continuations, "TOKENS_AT_ONCE", tokens)
    seen = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **given: seen.append(len(ids)) or generate(ids, **given))
    assert greedy_continuations(model, tokenizer, PROMPTS, 2) == alone
    assert seen == sizes


def test_a_prompt_longer_than_a_batch_is_continued_alone(tiny_llama, monkeypatch):
    monkeypatch.setattr(continuations, "TOKENS_AT_ONCE", 4)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert len(greedy_continuations(model, tiny_tokenizer(), PROMPTS[2:4], 2)) == 2
