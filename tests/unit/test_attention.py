"""Attention in blocks of queries against PyTorch's own, in float32."""

from __future__ import annotations

import pytest
import torch
from tests.tiny.masked import logits
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from darwinlm.families import attention
from darwinlm.families.attention import BLOCK, NAME, blocked_attention, causal_attention, use_blocked_attention

GROUPS = ((4, 4), (6, 2), (3, 1))


def heads(b, h, g, t, d=8, dtype=torch.float32):
    """Laid out as projections leave them: tokens before heads."""
    draw = torch.Generator().manual_seed(t)
    return tuple(torch.randn(b, t, n, d, generator=draw).to(dtype).transpose(1, 2) for n in (h, g, g))


def expected(query, key, value, scaling=None, **more):
    found = scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True, **more)
    return found.transpose(1, 2)


@pytest.mark.parametrize(("h", "g"), GROUPS)
@pytest.mark.parametrize("t", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
def test_blocks_of_queries_give_causal_attention(h, g, t):
    query, key, value = heads(2, h, g, t)
    found = causal_attention(query, key, value, 0.3)
    torch.testing.assert_close(found, expected(query, key, value, 0.3, is_causal=True), rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_near_as_rounding_allows():
    query, key, value = heads(1, 6, 2, 2 * BLOCK + 3, dtype=torch.bfloat16)
    exact = expected(query.float(), key.float(), value.float(), is_causal=True)
    found = causal_attention(query, key, value, 8**-0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)


class Attention(nn.Module):
    is_causal = True
    num_key_value_groups = 3


@pytest.fixture
def blocks(monkeypatch):
    """How often attention was computed in blocks."""
    calls = []
    real = attention.causal_attention
    monkeypatch.setattr(attention, "causal_attention", lambda *args: calls.append(1) or real(*args))
    return calls


@torch.no_grad()
def test_only_plain_causal_passes_are_computed_in_blocks(blocks):
    query, key, value = heads(2, 6, 2, BLOCK + 9)
    causal = expected(query, key, value, is_causal=True)
    found, weights = blocked_attention(Attention(), query, key, value, None)
    assert weights is None
    assert len(blocks) == 1
    torch.testing.assert_close(found, causal, rtol=1e-5, atol=1e-6)
    mask = (torch.rand(2, 1, BLOCK + 9, BLOCK + 9) < 0.5) | torch.eye(BLOCK + 9, dtype=torch.bool)
    masked, _ = blocked_attention(Attention(), query, key, value, mask)
    torch.testing.assert_close(masked, expected(query, key, value, attn_mask=mask), rtol=1e-5, atol=1e-6)
    whole, _ = blocked_attention(Attention(), query, key, value, None, is_causal=False)
    torch.testing.assert_close(whole, expected(query, key, value), rtol=1e-5, atol=1e-6)
    last, _ = blocked_attention(Attention(), query[:, :, -1:], key, value, None)
    torch.testing.assert_close(last, causal[:, -1:], rtol=1e-5, atol=1e-6)
    with torch.enable_grad():
        learning, _ = blocked_attention(Attention(), query.requires_grad_(), key, value, None)
    assert learning.requires_grad
    assert len(blocks) == 1


def tiny(model_type, implementation, **more):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    attention_sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model(model_type, **sizes, **attention_sizes, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()


@pytest.mark.parametrize(
    ("model_type", "more", "in_blocks"),
    [("llama", {}, 2), ("mistral", {"sliding_window": 40}, 0), ("qwen3", {}, 2)],
)
def test_models_compute_the_same_with_it(model_type, more, in_blocks, blocks):
    model = tiny(model_type, "sdpa", **more)
    tokens = torch.randint(64, (2, BLOCK + 30), generator=torch.Generator().manual_seed(1))
    before = logits(model, tokens)
    use_blocked_attention(model)
    assert model.config._attn_implementation == NAME
    torch.testing.assert_close(logits(model, tokens), before, rtol=1e-4, atol=1e-5)
    assert len(blocks) == in_blocks  # a sliding window comes with a mask


def test_another_choice_of_attention_stays():
    model = tiny("llama", "eager")
    use_blocked_attention(model)
    assert model.config._attn_implementation == "eager"
