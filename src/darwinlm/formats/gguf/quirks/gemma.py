"""Gemma 2 and 3: scores are scaled by a number of their own, and Gemma 2 caps them and the logits.

llama.cpp knows no key for the scale. It divides by the root of a head's columns, and in models of 27B parameters, which
it recognises by their number of blocks, by the root of hidden size / heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from darwinlm.formats.gguf.header import GgufHeader
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.surgery.reshape import Reshaper

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BLOCKS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""By the name of the architecture."""
NO_CAP = 1e5
"""A soft cap without effect: cap · tanh(x / cap) is x to six digits up to x = 170."""
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
"""Values of llama.cpp where the file has none."""


def scaled(tensor: Tensor, reshaper: Reshaper, layout: Layout) -> Tensor:
    """Queries, or gains of their norm, times the ratio of llama.cpp's scale of scores to that of the configuration."""
    return tensor * _ratio(reshaper, layout)


def undo_scaled(tensor: Tensor, reshaper: Reshaper, layout: Layout) -> Tensor:
    """Without this ratio."""
    return tensor / _ratio(reshaper, layout)


def _ratio(reshaper: Reshaper, layout: Layout) -> float:
    config = reshaper.checkpoint.config
    largest = len(layout.targets) == BLOCKS_OF_27B[layout.architecture.name]
    assumed = config.hidden_size // layout.targets[0].attention.heads if largest else reshaper.columns
    return float((assumed / config.query_pre_attn_scalar) ** 0.5)


def score_cap(reshaper: Reshaper, _: Layout) -> float:
    """Soft cap of the scores."""
    return float(reshaper.checkpoint.config.attn_logit_softcapping or NO_CAP)


def logit_cap(reshaper: Reshaper, _: Layout) -> float:
    """Soft cap of the logits."""
    return float(reshaper.checkpoint.config.final_logit_softcapping or NO_CAP)


def read_scale(config: PreTrainedConfig, header: GgufHeader) -> None:
    """Set the scale of scores that llama.cpp uses."""
    largest = config.num_hidden_layers == BLOCKS_OF_27B[header.architecture]
    config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else config.head_dim


def read_caps(config: PreTrainedConfig, header: GgufHeader) -> None:
    """Set the soft caps."""
    for name, default in CAPS.items():
        setattr(config, name, header.sizes().get(name, default))
