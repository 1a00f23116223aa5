"""What every pass through blocks takes: its type, its batches, and the memory that it holds."""

from __future__ import annotations

from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Item

ACTIVATIONS = 12
"""Widths of the residual stream that a block's pass holds at once, beside its MLP's channels."""


def forward_type(sizes: Sizes) -> tuple[str, int]:
    """The type of forward passes and the bytes of a number in it."""
    return ("float32", 4) if sizes.recipe.compute.dtype == "float32" else ("bfloat16", 2)


def pass_items(sizes: Sizes, size: int) -> list[Item]:
    """What a pass through a block holds besides its weights, in a type of so many bytes."""
    batch = pass_tokens(sizes)
    widest = max(shape.width for shape in sizes.shapes)
    activations = batch * (ACTIVATIONS * sizes.width + 4 * widest) * size
    return [Item("activations of one pass", activations, "compute.batch_tokens", batch)]


def batches(sizes: Sizes, tokens: float) -> float:
    """Passes that so many tokens are cut into."""
    return -(-tokens // pass_tokens(sizes))


def pass_tokens(sizes: Sizes) -> int:
    """Tokens in one pass."""
    return max(sizes.recipe.compute.batch_tokens, sizes.recipe.text.sequence_length)


def logit_items(sizes: Sizes) -> list[Item]:
    """All logits of a pass, float32."""
    batch = pass_tokens(sizes)
    return [Item("logits of one pass", batch * sizes.vocabulary * 4.0, "compute.batch_tokens", batch)]
