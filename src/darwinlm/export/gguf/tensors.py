"""Tensors of a model under their names in a GGUF file, reordered and folded as its architecture wants them.

Letters: m residual width, h columns of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from darwinlm.errors import ExportError
from darwinlm.export.gguf.layout import Layout
from darwinlm.export.reshape import Reshaper
from darwinlm.export.sizes import BlockSizes, Tensors

NORMS = {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
PARTS = ("attn_q", "attn_k", "attn_v")


def permute_rows(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of Q or K from halves to neighbours: row j of a head's first half, then of its second.

    A rotary embedding of transformers turns columns j and j + h/2 together, that of llama.cpp's older architectures
    columns 2j and 2j + 1.

    Args:
        tensor: [heads · h, ...].
        heads: in it.
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def gguf_tensors(reshaper: Reshaper, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file in order, a block in memory at a time, in float32.

    Raises:
        ExportError: the model has a tensor that the architecture has no place for.
    """
    yield from _outside(reshaper, layout)
    frequencies = rope_frequencies(reshaper)
    if frequencies is not None:
        yield "rope_freqs.weight", frequencies
    for number, target in enumerate(layout.targets):
        for name, tensor in block_tensors(reshaper, layout, target).items():
            yield f"blk.{number}.{name}", tensor.contiguous()


def _outside(reshaper: Reshaper, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Embedding, final norm and head."""
    names = {
        f"{reshaper.family.embedding}.weight": "token_embd.weight",
        f"{reshaper.family.final_norm}.weight": "output_norm.weight",
        f"{reshaper.family.head}.weight": "output.weight",
    }
    config = reshaper.checkpoint.config
    tied = bool(getattr(config, "tie_word_embeddings", False))
    embedding, head = (1.0, 1.0) if not layout.scaled else (config.embedding_multiplier, 1 / config.logits_scaling)
    for name, tensor in reshaper.outside():
        if name not in names:
            raise _no_place(name, layout)
        place = names[name]
        if place == "output_norm.weight":
            yield place, _norm(tensor.float(), layout)
        elif place == "token_embd.weight":
            yield place, tensor.float() * embedding
            if tied and layout.scaled:
                yield "output.weight", tensor.float() * head
        elif not tied:
            yield place, tensor.float() * head


def block_tensors(reshaper: Reshaper, layout: Layout, target: BlockSizes) -> Tensors:
    """One block's tensors under the names that follow `blk.N.`."""
    family, config = reshaper.family, reshaper.checkpoint.config
    attention, mlp = family.attention, family.mlp
    places = {
        **{f"{attention.name}.{name}": "attn_q" for name in attention.query},
        **{f"{attention.name}.{old}": new for old, new in zip(attention.key_value, PARTS[1:], strict=True)},
        f"{attention.name}.{attention.output}": "attn_output",
        **{f"{attention.name}.{old}": new for old, new in NORMS.items()},
        **{f"{mlp.name}.{old}": new for old, new in zip(mlp.inputs, ("ffn_gate", "ffn_up"), strict=True)},
        f"{mlp.name}.{mlp.output}": "ffn_down",
        attention.norms[0]: "attn_norm",
        mlp.norms[0]: "ffn_norm",
    }
    made: Tensors = {}
    for name, raw in reshaper.block(target).items():
        owner, _, leaf = name.rpartition(".")
        if owner not in places:
            raise _no_place(f"{reshaper.checkpoint.block_prefix(target.block)}{name}", layout)
        place, tensor = places[owner], raw.float()
        if layout.architecture.permuted and place in ("attn_q", "attn_k"):
            tensor = permute_rows(tensor, target.heads if place == "attn_q" else target.groups)
        if place.endswith("_norm"):
            tensor = _norm(tensor, layout)
        if layout.scaled and place == "attn_q":
            tensor = tensor * (config.attention_multiplier * reshaper.columns**0.5)
        if layout.scaled and place in ("attn_output", "ffn_down"):
            tensor = tensor * family.residual_scale(config)
        made[f"{place}.{leaf}"] = tensor
    return _fused(made, layout) if layout.architecture.fused else made


def rope_frequencies(reshaper: Reshaper) -> Tensor | None:
    """Divisors of the rotary frequencies [h / 2] where the model stretches them one by one (Llama 3.1), else None."""
    config = reshaper.checkpoint.config
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type") != "llama3":
        return None
    base = float(rope["rope_theta"])
    plain = base ** -(torch.arange(0, reshaper.columns, 2, dtype=torch.float64) / reshaper.columns)
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    length = float(rope["original_max_position_embeddings"])
    turns = length * plain / (2 * torch.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    stretched = plain * (blend + (1 - blend) / factor)
    return (plain / stretched).float()


def _fused(tensors: Tensors, layout: Layout) -> Tensors:
    for name in [name for name in tensors if name.startswith(PARTS) and name.endswith(".bias")]:
        raise _no_place(name, layout)
    parts = [tensors.pop(f"{part}.weight") for part in PARTS if f"{part}.weight" in tensors]
    return tensors | ({"attn_qkv.weight": torch.cat(parts)} if parts else {})


def _norm(tensor: Tensor, layout: Layout) -> Tensor:
    return tensor + 1 if layout.architecture.unit_norms else tensor


def _no_place(name: str, layout: Layout) -> ExportError:
    return ExportError(
        f"the model has a tensor {name}, for which the llama.cpp architecture {layout.architecture.name} has no place"
    )
