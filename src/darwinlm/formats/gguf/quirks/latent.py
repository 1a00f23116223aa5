"""DeepSeek-V2 and V3, GLM-4.7-Flash: keys and values from a latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.formats.gguf.quirks import FromFile
from darwinlm.formats.gguf.rope import Rope, magnitude
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.surgery.reshape import Reshaper

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def split_heads(tensor: Tensor, config: PreTrainedConfig) -> dict[str, Tensor]:
    """The projection from a latent [r] to heads as keys [n, r, h] and values [n, h, r]."""
    by_head = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
    keys, values = torch.split(by_head, [config.qk_nope_head_dim, config.v_head_dim], 1)
    return {"self_attn.k_b_proj.weight": keys.mT, "self_attn.v_b_proj.weight": values}


def undo_split_heads(parts: Mapping[str, Tensor], _: FromFile) -> Tensor:
    """The projection to heads from that to keys and that to values."""
    keys, values = parts["self_attn.k_b_proj.weight"], parts["self_attn.v_b_proj.weight"]
    return torch.cat([keys.mT, values], 1).flatten(0, 1)


def query_rank(reshaper: Reshaper, _: Layout) -> int:
    """Rank of compressed queries; 0 if they aren't."""
    return int(reshaper.checkpoint.config.q_lora_rank or 0)


def key_columns(reshaper: Reshaper, _: Layout) -> int:
    """Columns of a head's whole key."""
    config = reshaper.checkpoint.config
    return int(config.qk_nope_head_dim + config.qk_rope_head_dim)


def shared_key(reshaper: Reshaper, _: Layout) -> int:
    """Columns of the key that all heads share: the latent, which is the value too, and what turns."""
    return int(reshaper.checkpoint.config.kv_lora_rank) + reshaper.columns


def rope(rope: Rope, _: object) -> Rope:
    """With the factor on scores that yarn has in these models, see `Rope.scores`."""
    weight = rope.values.get("mscale_all_dim") if rope.kind == "yarn" else None
    return replace(rope, scores=magnitude(float(rope.values["factor"]), weight) ** 2 if weight else 1.0)
