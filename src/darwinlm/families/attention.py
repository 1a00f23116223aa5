"""Causal attention for forward passes on a CPU, a few queries at a time.

PyTorch's fused kernel for CPUs is several times slower than the matrix products that it consists of, and computes what
causality masks as well. Here plain batched products do the work, each block of queries against the keys up to it.
Whatever isn't a plain causal forward pass (padding, sliding windows, gradients, decoding) goes the way of transformers.

Letters: b sequences, h query heads, g KV heads, r query heads per KV head, t tokens, n queries at a time, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "darwinlm_blocked"
"""Of this way in a configuration's choice of an attention implementation."""

BLOCK = 128
"""Queries at a time: small enough that scores stay in a core's cache, large enough for matrix products."""


def use_blocked_attention(model: Any) -> None:
    """Let a model compute attention this way, where it lies on a CPU and would take PyTorch's fused kernel."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, blocked_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def blocked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the attention, of which it is asked whether it is causal.
        query: [b, h, t, d].
        key: [b, g, t, d].
        value: [b, g, t, d].
        attention_mask: None for plain causal attention.
        dropout: share of the weights that is dropped.
        scaling: of the scores; d^-1/2 without.
        is_causal: in place of the module's own word.
        more: what only other implementations know.

    Returns:
        [b, t, h, d], and None in place of the weights.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and causal and query.shape[2] == key.shape[2] and key.shape == value.shape
    if not plain or dropout or torch.is_grad_enabled() or more.get("position_bias") is not None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **more
        )
        return result
    return causal_attention(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Each token attends to itself and those before it: [b, h, t, d], [b, g, t, d], [b, g, t, d] -> [b, t, h, d]."""
    b, h, t, d = query.shape
    g = key.shape[1]
    r = h // g
    q = query.reshape(b * g, r, t, d)
    k, v = key.reshape(b * g, t, d).transpose(1, 2), value.reshape(b * g, t, d)
    output = q.new_empty(b * g, r, t, d)
    later = q.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
    nothing = q.new_zeros(())
    for start in range(0, t, BLOCK):
        end = min(start + BLOCK, t)
        n = end - start
        rows = q[:, :, start:end].reshape(b * g, r * n, d)
        scores = torch.baddbmm(nothing, rows, k[:, :, :end], beta=0, alpha=scaling)
        scores.view(b * g, r, n, end)[..., start:].add_(later[:n, :n])
        output[:, :, start:end] = torch.bmm(scores.softmax(-1), v[:, :end]).view(b * g, r, n, d)
    return output.view(b, h, t, d).transpose(1, 2).contiguous()
