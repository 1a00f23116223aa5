"""Gemma 4: sliding layers have heads of another size and base, and every layer an input of its own."""

from __future__ import annotations

from dataclasses import replace

import torch

from darwinlm.formats.gguf.rope import STILL, Rope
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.surgery.reshape import Reshaper


def slides(reshaper: Reshaper, _: Layout) -> list[bool]:
    """Whether each layer has a sliding window."""
    return [kind == "sliding_attention" for kind in reshaper.checkpoint.config.layer_types]


def smallest_head(reshaper: Reshaper, _: Layout) -> int:
    """Columns of a head in sliding layers."""
    return int(min(map(reshaper.columns_of, range(reshaper.checkpoint.n_blocks))))


def sliding_base(reshaper: Reshaper, _: Layout) -> float:
    """Base of the rotary embedding in sliding layers."""
    return float(reshaper.checkpoint.config.rope_parameters["sliding_attention"]["rope_theta"])


def rope(rope: Rope, _: object) -> Rope:
    """In full attention (`proportional`), a share of the pairs of a whole head turns."""
    if rope.kind != "proportional":
        return rope
    turned = int(float(rope.values.get("partial_rotary_factor", 1.0)) * rope.columns // 2)
    divisors = torch.full((rope.columns // 2,), STILL)
    divisors[:turned] = float(rope.values.get("factor", 1.0))
    return replace(rope, kind="default", turned=rope.columns, attention=1.0, divisors=divisors)


def input_width(reshaper: Reshaper, _: Layout) -> int:
    """Width of the layers' own inputs; 0 without."""
    return int(reshaper.checkpoint.config.hidden_size_per_layer_input or 0)


def dense_widths(reshaper: Reshaper, layout: Layout) -> list[int]:
    """Width of the dense MLP of every layer with experts."""
    return [int(reshaper.checkpoint.config.intermediate_size)] * len(layout.targets)
