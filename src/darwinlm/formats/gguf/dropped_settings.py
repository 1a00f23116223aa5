"""Settings of a model in a GGUF file that transformers silently drops, and the check that none is missing.

A model is read correctly if the file's keys are those that this package would write for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from darwinlm.formats.gguf.file_writer import write_keys
from darwinlm.formats.gguf.header import GgufHeader
from darwinlm.formats.gguf.quirks import quirks
from darwinlm.formats.gguf.rope import magnitude, rope_tensors
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.families.family import family_of
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FACTORS = "rope_freqs.weight"
USUAL_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Settings of the rope scaling `llama3` in all models with it. Files state the factor alone, as the largest divisor of
a frequency. `check_keys` compares the divisors."""
LONG = {f"rope_factors_{name}.weight": f"{name}_factor" for name in ("long", "short")}
FREE = {"context_length", "vocab_size", "rope.scaling.finetuned", "rope.scaling.original_context_length"}
"""Keys without an effect on the logits of a text, unless other keys, which are compared, make use of them."""
USUAL: Mapping[str, bool | float | str] = {
    "attention.causal": True,
    "rope.freq_base_swa": 10000.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.factor": 1.0,
    "rope.scaling.type": "none",
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}
"""Values of further keys with which llama.cpp computes the same as without them."""
OTHERWISE = "give the model's original folder or hub id"


def complete(config: PreTrainedConfig, header: GgufHeader) -> None:
    """Set what transformers doesn't read, in place: head size, window, rotary embedding, and what the family needs."""
    sizes, stock = header.sizes(), family_of(config).gguf
    columns = sizes.get("attention.key_length")
    if columns and getattr(config, "head_dim", None) is not None:
        config.head_dim = columns
    for set_fields in quirks(None if stock is None else stock.read):
        set_fields(config, header)
    window = sizes.get("attention.sliding_window")
    in_none = stock is not None and stock.period is None and "sliding_window_pattern" not in stock.keys
    if hasattr(config, "sliding_window") and (window or in_none):
        config.sliding_window = window
    parameters = config.rope_parameters
    if "full_attention" in parameters:
        full = _rope(parameters["full_attention"], config, header)
        config.rope_parameters = parameters | {"full_attention": full}
    else:
        config.rope_parameters = _rope(parameters, config, header)


def _rope(rope: JsonObject, config: PreTrainedConfig, header: GgufHeader) -> JsonObject:
    """The rotary embedding of a file; `rope` is what transformers read of it."""
    sizes, settings = header.sizes(), dict(rope)
    if rope.get("rope_type", "default") != "default":
        return rope
    columns = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = sizes.get("rope.dimension_count", columns)
    if turned < columns:
        settings["partial_rotary_factor"] = turned / columns
    factor = float(sizes.get("rope.scaling.factor") or 1.0)
    kind = sizes.get("rope.scaling.type", "linear")
    length = sizes.get("rope.scaling.original_context_length") or config.max_position_embeddings
    attention = float(sizes.get("rope.scaling.attn_factor", 1.0))
    if all(name in header.tensors for name in LONG):
        factors = {field: header.numbers(name).tolist() for name, field in LONG.items()}
        settings |= {"rope_type": "longrope", "attention_factor": attention, **factors}
        return settings | {"original_max_position_embeddings": length}
    if FACTORS in header.tensors:
        return settings | {"rope_type": "llama3", "factor": float(header.numbers(FACTORS).max()), **USUAL_BOUNDS}
    if kind == "yarn" and factor != 1:
        settings |= {"rope_type": kind, "factor": factor, "attention_factor": attention * magnitude(factor)}
        return settings | {"original_max_position_embeddings": length}
    return settings | {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else settings


def check_keys(path: Path, header: GgufHeader, reshaper: Reshaper, layout: Layout) -> None:
    """Check that a model read from a file would be written with the same keys and factors of its rotary embedding.

    Raises CheckpointError, which names the first key that was read otherwise or not at all.
    """
    import gguf

    writer = gguf.GGUFWriter(None, layout.architecture.name)
    write_keys(writer, reshaper, layout, 0)
    written = {name: value.value for part in writer.kv_data for name, value in part.items()}
    expected = {name.removeprefix(f"{layout.architecture.name}."): value for name, value in written.items()}
    if (window := getattr(reshaper.checkpoint.config, "sliding_window", None)) is not None:
        expected["attention.sliding_window"] = window
    for name, value in header.sizes().items():
        if name not in FREE and not _same(value, expected.get(name, USUAL.get(name))):
            meant = f"reads {shorten(expected[name])}" if name in expected else "doesn't read it"
            raise CheckpointError(
                f"{path}: {header.architecture}.{shorten(name)} is {shorten(value)}, but transformers {meant}, which "
                f"makes another model: {OTHERWISE}"
            )
    tensors = rope_tensors(layout.rope, whole_heads=layout.architecture.whole_heads)
    for name in sorted({name for name in header.tensors if name.startswith("rope_")} | tensors.keys()):
        if name not in tensors or name not in header.tensors or not _close(header.numbers(name), tensors[name]):
            raise CheckpointError(
                f"{path} scales its rotary embedding by the tensor {name} in a way that transformers doesn't read: "
                f"{OTHERWISE}"
            )


def _same(value: object, expected: object) -> bool:
    """Whether two values of a key mean the same; one for all layers may be written once."""
    if isinstance(value, list) and not isinstance(expected, list):
        return {*value} <= {expected}
    if isinstance(expected, list) and not isinstance(value, list):
        return {*expected} <= {value}
    if isinstance(value, float) and isinstance(expected, int | float):
        return isclose(value, expected, rel_tol=1e-5)
    return bool(value == expected)


def _close(tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    return tensor.shape == expected.shape and torch.allclose(tensor, expected, rtol=1e-4, atol=0)
