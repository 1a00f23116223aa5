"""Needs of passes through blocks: element type, batches, and memory."""

from __future__ import annotations

from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Item

ACTIVATIONS = 12
"""Activations of a block's pass in multiples of the residual width, besides its MLP's channels."""


def forward_type(sizes: Sizes) -> tuple[str, int]:
    """Element type of forward passes and its bytes."""
    return ("float32", 4) if sizes.recipe.compute.dtype == "float32" else ("bfloat16", 2)


def pass_items(sizes: Sizes, size: int) -> list[Item]:
    """Memory of a pass through a block besides its weights, with `size` bytes per element."""
    batch = pass_tokens(sizes)
    widest = max(shape.width for shape in sizes.shapes)
    activations = batch * (ACTIVATIONS * sizes.width + 4 * widest) * size
    return [Item("activations of one pass", activations, "compute.batch_tokens", batch)]


def batches(sizes: Sizes, tokens: float) -> float:
    """Number of passes for `tokens` tokens."""
    return -(-tokens // pass_tokens(sizes))


def pass_tokens(sizes: Sizes) -> int:
    """Tokens in one pass."""
    return max(sizes.recipe.compute.batch_tokens, sizes.recipe.text.sequence_length)


def logit_items(sizes: Sizes) -> list[Item]:
    """All logits of a pass, float32."""
    batch = pass_tokens(sizes)
    return [Item("logits of one pass", batch * sizes.vocabulary * 4.0, "compute.batch_tokens", batch)]
