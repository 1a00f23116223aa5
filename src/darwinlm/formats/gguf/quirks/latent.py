"""DeepSeek-V2 and V3, GLM-4.7-Flash: keys and values from a latent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def split_heads(tensor: Tensor, config: Any) -> dict[str, Tensor]:
    """The projection from a latent [r] to heads as keys [n, r, h] and values [n, h, r]."""
    by_head = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
    keys, values = torch.split(by_head, [config.qk_nope_head_dim, config.v_head_dim], 1)
    return {"self_attn.k_b_proj.weight": keys.mT, "self_attn.v_b_proj.weight": values}


def query_rank(reshaper: Any, _: Any) -> int:
    """Rank of compressed queries; 0 if they aren't."""
    return int(reshaper.checkpoint.config.q_lora_rank or 0)


def key_columns(reshaper: Any, _: Any) -> int:
    """Columns of a head's whole key."""
    config = reshaper.checkpoint.config
    return int(config.qk_nope_head_dim + config.qk_rope_head_dim)
