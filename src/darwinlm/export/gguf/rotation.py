"""llama.cpp's rotary embedding from a file's keys and tensors, without code of the writer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Get = Callable[[str], Tensor | None]
NEIGHBOURS = ("llama", "deci", "granite", "smollm3", "glm4", "arcee")
"""Architectures whose rotary embedding pairs neighbouring columns; the others pair halves."""
SLIDING_BASE = 10000.0


def rotate(x: Tensor, keys: Mapping[str, Any], get: Get, *, slides: bool) -> Tensor:
    """Rotate queries or keys.

    Args:
        x: [t, heads, h], from position 0 on.
        keys: Keys of the file, without its architecture's prefix.
        get: Function that reads a tensor.
        slides: Whether the layer has a sliding window (Gemma 3 rotates it differently).
    """
    architecture, count = str(keys["general.architecture"]), int(keys["rope.dimension_count"])
    turned, rest = x[..., :count], x[..., count:]
    frequencies, size = _frequencies(keys, get, count, local=slides and architecture == "gemma3")
    angles = torch.arange(len(x), dtype=torch.float32)[:, None, None] * frequencies
    cosine, sine = size * angles.cos(), size * angles.sin()
    if architecture in NEIGHBOURS:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    pair = first * cosine - second * sine, first * sine + second * cosine
    rotated = torch.stack(pair, -1).flatten(-2) if architecture in NEIGHBOURS else torch.cat(pair, -1)
    return torch.cat([rotated, rest], -1)


def _frequencies(keys: Mapping[str, Any], get: Get, count: int, *, local: bool) -> tuple[Tensor, float]:
    """Angles per position [count / 2], and the factor on cosines and sines."""
    steps = torch.arange(0, count, 2, dtype=torch.float32)
    if local:
        return SLIDING_BASE ** -(steps / count), 1.0
    base, kind = float(keys["rope.freq_base"]), keys.get("rope.scaling.type")
    plain = base ** -(steps / count)
    size = float(keys.get("rope.scaling.attn_factor", 1.0))
    divisors = get("rope_factors_short.weight" if kind == "longrope" else "rope_freqs.weight")
    if divisors is not None:
        plain = plain / divisors
    if kind == "linear":
        return plain / float(keys["rope.scaling.factor"]), size
    if kind != "yarn":
        return plain, size
    factor, original = float(keys["rope.scaling.factor"]), float(keys["rope.scaling.original_context_length"])

    def place(turns: float) -> float:
        return count * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(place(32))), min(count - 1, math.ceil(place(1)))
    kept = 1 - ((steps / 2 - low) / max(0.001, high - low)).clamp(0, 1)
    return plain * kept + plain / factor * (1 - kept), size * (1 + 0.1 * math.log(factor))
