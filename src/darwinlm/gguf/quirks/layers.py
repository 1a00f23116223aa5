"""Kinds of layers that follow from their numbers in llama.cpp."""

from __future__ import annotations

from typing import Any

SLIDING_EXAONE = 64
"""Number of blocks by which llama.cpp recognises EXAONE 4 with sliding-window layers."""


def not_64_blocks(config: Any) -> bool:
    """Whether llama.cpp takes an EXAONE 4 for one without sliding windows."""
    return bool(config.num_hidden_layers != SLIDING_EXAONE)


def fourth_without_rope(config: Any) -> bool:
    """Whether every fourth layer has no rotary embedding (SmolLM3)."""
    return list(config.no_rope_layers) == [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]


def equal_distances(config: Any) -> bool:
    """Whether attentions come at equal distances, the last block included (Qwen3.5)."""
    whole = [kind == "full_attention" for kind in config.layer_types]
    step = whole.index(True) + 1 if any(whole) else 0
    return bool(step) and whole == [(i + 1) % step == 0 for i in range(len(whole))]


def distance(reshaper: Any, _: Any) -> int:
    """Distance of attentions among other mixers."""
    return int(reshaper.checkpoint.config.layer_types.index("full_attention") + 1)
