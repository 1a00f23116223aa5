"""Gemma 4: sliding layers have heads of another size and base, and every layer an input of its own."""

from __future__ import annotations

from typing import Any


def slides(reshaper: Any, _: Any) -> list[bool]:
    """Whether each layer has a sliding window."""
    return [kind == "sliding_attention" for kind in reshaper.checkpoint.config.layer_types]


def smallest_head(reshaper: Any, _: Any) -> int:
    """Columns of a head in sliding layers."""
    return int(min(map(reshaper.columns_of, range(reshaper.checkpoint.n_blocks))))


def sliding_base(reshaper: Any, _: Any) -> float:
    """Base of the rotary embedding in sliding layers."""
    return float(reshaper.checkpoint.config.rope_parameters["sliding_attention"]["rope_theta"])


def input_width(reshaper: Any, _: Any) -> int:
    """Width of the layers' own inputs; 0 without."""
    return int(reshaper.checkpoint.config.hidden_size_per_layer_input or 0)
