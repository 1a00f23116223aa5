"""Hunyuan: a rotary embedding of another base."""

from __future__ import annotations

from dataclasses import replace

from darwinlm.formats.gguf.rope import Rope


def rope(rope: Rope, _: object) -> Rope:
    """With `alpha`, dynamic scaling is a larger base from the first token on."""
    alpha = rope.values.get("alpha")
    if rope.kind != "dynamic" or not alpha:
        return rope
    return replace(rope, kind="default", base=rope.base * float(alpha) ** (rope.columns / (rope.columns - 2)))
