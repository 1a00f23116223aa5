"""Llama 3.1's rotary embedding in GGUF files: divisors of the frequencies in a tensor, which transformers doesn't read.

Letters: d turned columns of a head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FACTORS = "rope_freqs.weight"
CONTEXT, HIGH = 8192, 4.0
"""Llama's own values, where the divisors don't tell others."""
CLOSE = 1e-5
"""Relative error of divisors in float32."""


def read_llama3(factors: Tensor, config: Any) -> dict[str, Any] | None:
    """Find the settings `llama3` of a rotary embedding that give a file's divisors.

    The divisors tell the factor, and where the blend between both ends begins and stops. Only ratios of the original
    context and the two frequency factors matter, so the lower one is taken to be 1.

    Args:
        factors: the tensor `FACTORS` of a file, [d / 2].
        config: what transformers read of the file, with its plain rotary embedding.

    Returns:
        Values of `rope_parameters`; None where no such settings give these divisors.
    """
    divisors = factors.double().numpy()
    plain = dict(config.rope_parameters)
    turns = plain["rope_theta"] ** -(np.arange(len(divisors)) / len(divisors)) / (2 * math.pi)
    factor = float(divisors.max())
    if not np.isfinite(divisors).all() or divisors.min() < 1 - CLOSE or factor <= 1:
        return None
    context, high = CONTEXT, HIGH
    between = (divisors > 1 + CLOSE) & (divisors < factor * (1 - CLOSE))
    if between.sum() >= 2:
        share = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
        slope, start = np.polyfit(turns[between], share, 1)
        if slope <= 0 or start >= 0:
            return None
        context, high = round(-slope / start), round(1 - 1 / start, 4)
    found = plain | {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    tried = type(config).from_dict({**config.to_dict(), "rope_parameters": found})
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](tried, torch.device("cpu"))
    scaled = 2 * math.pi * turns / frequencies.double().numpy() if len(frequencies) == len(turns) else np.zeros(1)
    return found if scaled.shape == divisors.shape and np.allclose(scaled, divisors, rtol=CLOSE, atol=0) else None
