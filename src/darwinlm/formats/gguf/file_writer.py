"""Write a GGUF file: keys, tokenizer, and tensors one by one, without holding the whole model in memory."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from darwinlm.formats.gguf.pooled_outputs import SCORES
from darwinlm.formats.gguf.quirks import quirk
from darwinlm.formats.gguf.rope import write_rope
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.formats.gguf.tensor_places import exact_tensors
from darwinlm.formats.gguf.tensors import gguf_tensors
from darwinlm.formats.gguf.tokenizer_keys import KeyValue, write_tokenizer
from darwinlm.model.quantisation import QUANTISATIONS
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runtime.compute import all_finite
from darwinlm.runtime.errors import ExportError

if TYPE_CHECKING:
    from gguf import GGUFWriter

ROUTER = "ffn_gate_inp.weight"
"""The router, which isn't quantised: it is small, and rounding would change the choice of experts."""
LARGEST_F16 = 65504.0


def write_gguf(
    path: Path, reshaper: Reshaper, layout: Layout, tokenizer: Mapping[str, KeyValue], quantisation: str
) -> None:
    """Write the file.

    `path` is temporary: the caller renames it. `quantisation` is one that the package `gguf` computes.

    Raises:
        ExportError: A weight is out of the type's range, or the rows of a matrix aren't whole blocks.
        OSError: The disk is full.
    """
    import gguf

    writer = gguf.GGUFWriter(path, layout.architecture.name)
    exact = exact_tensors(reshaper.family, layout)
    try:
        kind = "ALL_F32" if quantisation == "f32" else f"MOSTLY_{quantisation.upper()}"
        write_keys(writer, reshaper, layout, gguf.LlamaFileType[kind])
        write_tokenizer(writer, tokenizer)
        for name, tensor in gguf_tensors(reshaper, layout):
            kind = _type(name, tensor, exact, quantisation)
            if kind == "F32":
                writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), tensor.numel() * 4)
                continue
            raw = gguf.GGMLQuantizationType[kind]
            try:
                shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), raw)
            except ValueError as error:
                raise ExportError(f"{quantisation} doesn't fit the tensor {name}: {error}. Use f16 or bf16") from error
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in gguf_tensors(reshaper, layout):
            writer.write_tensor_data(_numbers(gguf, name, tensor, _type(name, tensor, exact, quantisation)))
    finally:
        writer.close()


def _type(name: str, tensor: Tensor, exact: Container[str], quantisation: str) -> str:
    inside = re.sub(r"^blk\.\d+\.", "", name)
    if inside in exact or tensor.ndim == 1 or name.endswith((ROUTER, ".bias", SCORES)):
        return "F32"
    if quantisation == "q4_0" and not name.startswith("blk."):
        return "Q8_0"  # embedding and head are the most sensitive to rounding
    return QUANTISATIONS[quantisation].element


def _numbers(gguf: ModuleType, name: str, tensor: Tensor, kind: str) -> NDArray[np.float32] | NDArray[np.uint8]:
    if not bool(all_finite(tensor)):
        raise ExportError(f"the tensor {name} holds numbers that aren't finite: the model is damaged")
    if kind == "F16" and float(tensor.abs().max()) > LARGEST_F16:
        raise ExportError(f"the tensor {name} holds numbers beyond float16's range: use --quant bf16 or f32")
    array: NDArray[np.float32] = tensor.numpy()
    if kind == "F32":
        return array
    quantised: NDArray[np.generic] = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    return quantised.view(np.uint8)


def write_keys(writer: GGUFWriter, reshaper: Reshaper, layout: Layout, file_type: int) -> None:
    """Add all keys but those of the tokenizer to a file."""
    import gguf

    keys = {"file_type": file_type} | _general_keys(reshaper, layout) | _further_keys(reshaper, layout)
    for name, value in keys.items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    if layout.reading is not None:
        writer.add_pooling_type(gguf.PoolingType[layout.reading.pooling])
        if layout.reading.labels:
            writer.add_classifier_output_labels(list(layout.reading.labels))
    write_rope(writer, layout.rope, whole_heads=layout.architecture.whole_heads)


def _general_keys(reshaper: Reshaper, layout: Layout) -> dict[str, KeyValue | None]:
    """Keys that every file has, by their methods of `gguf.GGUFWriter` without `add_`."""
    config, architecture = reshaper.checkpoint.config, layout.architecture
    heads = [target.attention.heads for target in layout.targets]
    groups = [target.attention.groups for target in layout.targets]
    widths = [target.mlp.width for target in layout.targets]
    full = next(i for i, target in enumerate(layout.targets) if target.attention.width)
    uniform = not architecture.per_layer
    columns = max(reshaper.columns_of(target.block) for target in layout.targets)
    eps = float(getattr(config, "rms_norm_eps", None) or config.norm_eps)
    keys: dict[str, KeyValue | None] = {
        "type": "model",
        "name": str(getattr(config, "_model_name_or_path", "") or reshaper.checkpoint.folder.resolve().name),
        "quantization_version": 2,
        "vocab_size": int(config.vocab_size),
        "context_length": layout.context,
        "embedding_length": int(config.hidden_size),
        "block_count": len(layout.targets),
        "feed_forward_length": widths[0] if uniform else widths,
        "head_count": heads[full] if uniform else heads,
        "head_count_kv": groups[full] if uniform and not architecture.groups_by_layer else groups,
        "key_length": columns,
        "value_length": columns,
        "layer_norm_eps" if architecture.layer_norms else "layer_norm_rms_eps": eps,
        "sliding_window": layout.window,
    }
    if (experts := reshaper.family.mlp.experts) is not None:
        keys |= {
            "expert_count": max(target.mlp.experts for target in layout.targets),
            "expert_used_count": experts.chosen_of(config),
            "expert_feed_forward_length": next(target.mlp.width for target in layout.targets if target.mlp.experts),
        }
    return keys


def _further_keys(reshaper: Reshaper, layout: Layout) -> dict[str, KeyValue | None]:
    """Values of `Architecture.keys`."""
    config = reshaper.checkpoint.config
    keys: dict[str, KeyValue | None] = {}
    for name, source in layout.architecture.keys.items():
        if isinstance(source, str):
            keys[name] = quirk(source)(reshaper, layout) if "." in source else getattr(config, source)
        elif isinstance(source, tuple):
            keys[name] = prod(getattr(config, factor) for factor in source)
        else:
            keys[name] = source
    return keys
