"""Features of a model that an architecture of llama.cpp must support; unsupported ones are refused."""

from __future__ import annotations

from typing import Any

from darwinlm.gguf.architecture import Architecture, quirk
from darwinlm.gguf.rope import Rope, UnsupportedError, read_rope

OTHER_FORMATS = "Use --to vllm or --to hf"
"""Remedy where llama.cpp computes something else, also for layers of stock shapes."""


def read_features(stock: Architecture, config: Any, columns: int) -> tuple[Rope, int, int | None, list[str]]:
    """Read the features from the configuration of a model with heads of so many columns.

    Returns:
        The rotary embedding, the maximum context in which the file and the model give the same results, the window of
        sliding layers if the architecture has such layers, and remarks for the user.

    Raises:
        UnsupportedError: The architecture doesn't support this.
    """
    _check(stock, config)
    rope = read_rope(config, columns, one_base=stock.one_base)
    if rope.turned < columns and stock.whole_heads and not stock.partial:
        raise UnsupportedError("only a part of each head is rotated")
    notes = []
    context, window = int(config.max_position_embeddings), None
    if "sliding_window_pattern" in stock.keys:
        window = int(config.sliding_window)
    elif stock.period is not None:
        window = _window_of_some(stock, stock.period, config)
    elif (seen := _window_of_all(config)) is not None:
        notes.append(
            f"its attention slides over a window of {seen} tokens, which llama.cpp doesn't support in all layers: up "
            f"to this length results are the same, so the file's context is {seen} instead of {context}"
        )
        context = seen
    if rope.values.get("llama_4_scaling_beta") and context > rope.original:
        notes.append(
            f"its queries are scaled with their position from {rope.original} tokens on, which llama.cpp doesn't "
            f"support in a Llama: the file's context is {rope.original} instead of {context}"
        )
        context = rope.original
    if rope.kind == "dynamic":
        notes.append(f"its rope scaling of the type dynamic starts after the file's context of {context} tokens")
    if rope.kind == "longrope" and context > rope.original:
        notes.append(
            f"rope factors for long texts: llama.cpp uses them if its context is larger than {rope.original} "
            "tokens, transformers if the text is longer"
        )
    return rope, context, window, notes


def _check(stock: Architecture, config: Any) -> None:
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "silu")
    if activation not in stock.activations:
        raise UnsupportedError(f"its MLPs use {activation}", OTHER_FORMATS)
    for each in stock.requires:
        if not each.meets(config) or not (each.test is None or quirk(each.test)(config)):
            raise UnsupportedError(each.otherwise, OTHER_FORMATS)


def _window_of_all(config: Any) -> int | None:
    """Window of sliding layers; None if there are none."""
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    slides = 0 < window < config.max_position_embeddings and (not kinds or "sliding_attention" in kinds)
    return window if slides else None


def _window_of_some(stock: Architecture, period: int, config: Any) -> int:
    """The same for an architecture with a fixed order of sliding layers."""
    slide = [kind == "sliding_attention" for kind in config.layer_types]
    as_known = slide == [bool((i + 1) % period) for i in range(len(slide))]
    if not as_known and (stock.fixed_period or _window_of_all(config) is not None):
        raise UnsupportedError(f"in llama.cpp every {period}. layer has no window, this model has another order")
    return int(config.sliding_window) if as_known else int(config.max_position_embeddings)
