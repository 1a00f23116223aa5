"""Granite 3: multipliers of the configuration, folded into the weights where a file has no keys for them."""

from __future__ import annotations

from torch import Tensor

from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.surgery.reshape import Reshaper


def embedding(tensor: Tensor, reshaper: Reshaper, _: Layout) -> Tensor:
    """The embedding times its multiplier."""
    return tensor * float(reshaper.checkpoint.config.embedding_multiplier)


def logits(tensor: Tensor, reshaper: Reshaper, _: Layout) -> Tensor:
    """The head divided by the scale of the logits."""
    return tensor * float(1 / reshaper.checkpoint.config.logits_scaling)


def queries(tensor: Tensor, reshaper: Reshaper, _: Layout) -> Tensor:
    """Queries times the ratio of the multiplier of scores to that of a Llama."""
    return tensor * float(reshaper.checkpoint.config.attention_multiplier * reshaper.columns**0.5)


def residual(tensor: Tensor, reshaper: Reshaper, _: Layout) -> Tensor:
    """An output projection times the multiplier of the residual stream."""
    return tensor * reshaper.family.residual_scale(reshaper.checkpoint.config)
