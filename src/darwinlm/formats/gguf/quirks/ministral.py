"""Ministral 3: queries grow with their position."""

from __future__ import annotations

from darwinlm.formats.gguf.rope import Rope


def context(rope: Rope, context: int) -> tuple[int, str] | None:
    """The original context, up to which queries aren't scaled."""
    if not rope.values.get("llama_4_scaling_beta") or context <= rope.original:
        return None
    return rope.original, (
        f"its queries are scaled with their position from {rope.original} tokens on, which llama.cpp doesn't "
        f"support in a Llama: the file's context is {rope.original} instead of {context}"
    )
