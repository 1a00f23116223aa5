"""What training takes, of candidates and in recovery."""

from __future__ import annotations

from darwinlm.needs.need import Need
from darwinlm.needs.sizes import Sizes

UPDATE_BYTES = 60
"""Bytes moved per parameter in a step: gradient norm and clipping, AdamW's two moments, the weight, zeroing."""

STATE_BYTES = 12
"""Bytes of one weight's state: float32 master weight, AdamW's two moments."""


def trained(sizes: Sizes, rank: int) -> float:
    """Number of trained parameters in the smaller blocks: all, or those of adapters of a rank on every projection."""
    if not rank:
        return sizes.kept * sizes.blocks
    matrices = (size for shape in sizes.shapes for size in shape.tensors.values() if len(size) == 2)
    # One side of each is the residual stream, which keeps its width.
    return rank * sum(sizes.width + sizes.kept * (sum(size) - sizes.width) for size in matrices)


def add_updates(need: Need, steps: float, weights: float) -> None:
    """Add steps of an optimiser."""
    need.add("updates", steps * weights * UPDATE_BYTES)
