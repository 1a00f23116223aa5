"""Write a GGUF file: keys, tokenizer, and tensors one by one, without holding the whole model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darwinlm.formats.gguf.quirks import quirk
from darwinlm.formats.gguf.rope import write_rope
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.formats.gguf.tensors import gguf_tensors
from darwinlm.formats.gguf.tokenizer_keys import write_tokenizer
from darwinlm.model.quantisation import QUANTISATIONS
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runtime.errors import ExportError

ROUTER = "ffn_gate_inp.weight"
"""The router, which isn't quantised: it is small, and rounding would change the choice of experts."""
EXACT = (".ssm_conv1d.", ".ssm_a", ".ssm_d", ".ssm_norm.", ".shortconv.conv.", "per_layer_model_proj.")
"""Small tensors that llama.cpp reads in float32 only, or keeps."""
LARGEST_F16 = 65504.0
NO_CAP = 1e5
"""A soft cap without effect: cap · tanh(x / cap) is x to six digits up to x = 170."""


def write_gguf(path: Path, reshaper: Reshaper, layout: Layout, tokenizer: Mapping[str, Any], quantisation: str) -> None:
    """Write the file.

    `path` is temporary: the caller renames it. `quantisation` is one that the package `gguf` computes.

    Raises:
        ExportError: A weight is out of the type's range, or the rows of a matrix aren't whole blocks.
        OSError: The disk is full.
    """
    import gguf

    writer = gguf.GGUFWriter(path, layout.architecture.name)
    try:
        kind = "ALL_F32" if quantisation == "f32" else f"MOSTLY_{quantisation.upper()}"
        write_keys(writer, reshaper, layout, gguf.LlamaFileType[kind])
        write_tokenizer(writer, tokenizer)
        for name, tensor in gguf_tensors(reshaper, layout):
            kind = _type(name, tensor, quantisation)
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
            writer.write_tensor_data(_numbers(gguf, name, tensor, _type(name, tensor, quantisation)))
    finally:
        writer.close()


def _type(name: str, tensor: Tensor, quantisation: str) -> str:
    if tensor.ndim == 1 or name.endswith((ROUTER, ".bias")) or any(part in name for part in EXACT):
        return "F32"
    if quantisation == "q4_0" and not name.startswith("blk."):
        return "Q8_0"  # embedding and head are the most sensitive to rounding
    return QUANTISATIONS[quantisation].element


def _numbers(gguf: Any, name: str, tensor: Tensor, kind: str) -> np.ndarray[Any, Any]:
    if not bool(torch.isfinite(tensor).all()):
        raise ExportError(f"the tensor {name} holds numbers that aren't finite: the model is damaged")
    if kind == "F16" and float(tensor.abs().max()) > LARGEST_F16:
        raise ExportError(f"the tensor {name} holds numbers beyond float16's range: use --quant bf16 or f32")
    array: np.ndarray[Any, Any] = tensor.numpy()
    if kind == "F32":
        return array
    quantised: np.ndarray[Any, Any] = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    return quantised.view(np.uint8)


def write_keys(writer: Any, reshaper: Reshaper, layout: Layout, file_type: int) -> None:
    """Add all keys but those of the tokenizer to a file."""
    config, architecture = reshaper.checkpoint.config, layout.architecture
    heads = [target.attention.heads for target in layout.targets]
    groups = [target.attention.groups for target in layout.targets]
    widths = [target.mlp.width for target in layout.targets]
    if architecture.per_layer and reshaper.family.mlp.experts is not None:
        widths = [int(config.intermediate_size)] * len(widths)  # of the MLPs beside experts
    uniform = not architecture.per_layer
    full = next(i for i, target in enumerate(layout.targets) if target.attention.width)
    writer.add_type("model")
    writer.add_name(str(getattr(config, "_model_name_or_path", "") or reshaper.checkpoint.folder.resolve().name))
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_context_length(layout.context)
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(len(layout.targets))
    writer.add_feed_forward_length(widths[0] if uniform else widths)
    writer.add_head_count(heads[full] if uniform else heads)
    columns = max(reshaper.columns_of(target.block) for target in layout.targets)
    latent = int(getattr(config, "kv_lora_rank", None) or 0)  # then all heads share a key, part of which is the value
    group = 1 if latent else groups[full]
    writer.add_head_count_kv(group if uniform and not architecture.groups_by_layer else groups)
    writer.add_key_length(latent + columns)
    writer.add_value_length(latent or columns)
    add_eps = writer.add_layer_norm_eps if architecture.layer_norms else writer.add_layer_norm_rms_eps
    add_eps(float(getattr(config, "rms_norm_eps", None) or config.norm_eps))
    _write_further(writer, reshaper, layout)
    write_rope(writer, layout.rope, whole_heads=architecture.whole_heads)
    if architecture.multipliers:
        writer.add_attention_scale(float(config.attention_multiplier))
        writer.add_embedding_scale(float(config.embedding_multiplier))
        writer.add_residual_scale(float(config.residual_multiplier))
        writer.add_logit_scale(float(config.logits_scaling))
    if layout.window is not None:
        writer.add_sliding_window(layout.window)
    if architecture.caps:
        writer.add_attn_logit_softcapping(float(config.attn_logit_softcapping or NO_CAP))
        writer.add_final_logit_softcapping(float(config.final_logit_softcapping or NO_CAP))
    if (experts := reshaper.family.mlp.experts) is not None:
        writer.add_expert_count(max(target.mlp.experts for target in layout.targets))
        writer.add_expert_used_count(experts.chosen_of(config))
        writer.add_expert_feed_forward_length(next(target.mlp.width for target in layout.targets if target.mlp.experts))


def _write_further(writer: Any, reshaper: Reshaper, layout: Layout) -> None:
    """Add the keys of `Architecture.keys`."""
    config = reshaper.checkpoint.config
    for name, source in layout.architecture.keys.items():
        value: Any = source
        if isinstance(source, str):
            value = quirk(source)(reshaper, layout) if "." in source else getattr(config, source)
        elif isinstance(source, tuple):
            value = prod(getattr(config, field) for field in source)
        if value is not None:
            getattr(writer, f"add_{name}")(value)
