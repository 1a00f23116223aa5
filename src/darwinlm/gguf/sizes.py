"""Sizes of GGUF files, predicted from the shapes of a checkpoint's weights.

The rules for mixtures of types are those of llama.cpp's quantiser (`llama_tensor_get_type`), without its exceptions for
single architectures.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.gguf.header import read_header
from darwinlm.gguf.write import BLOCK, BY_LIBRARY, PLAIN, QUANTISATIONS, UNBLOCKED

NARROW = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Types for rows that aren't whole blocks of 256."""
BASE = {"q2_k": "Q2_K", "q3_k_m": "Q3_K", "q4_k_s": "Q4_K", "q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K"}


def predicted_sizes(checkpoint: Checkpoint, like: Path) -> dict[str, int]:
    """Bytes of a checkpoint's file by quantisation, the largest first; with the keys and tokenizer of another file."""
    header = read_header(like)
    kinds = ((header.types[name], shape) for name, shape in header.tensors.items())
    rest = like.stat().st_size - sum(_bytes(kind, shape) for kind, shape in kinds)
    stored = checkpoint.stored_shapes()
    shapes = {name: parts.shape(stored.__getitem__) for name, parts in checkpoint.tensors.items()}
    sizes = {
        each: rest + sum(_bytes(_kind(checkpoint, name, shape, each), shape) for name, shape in shapes.items())
        for each in QUANTISATIONS
        if each not in UNBLOCKED
    }
    return dict(sorted(sizes.items(), key=lambda size: -size[1]))


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(prod(shape) // block * size)


def _kind(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], quantisation: str) -> str:
    family, blocks = checkpoint.family, checkpoint.n_blocks
    inside = name.startswith(f"{family.layers}.")
    if len(shape) == 1 or shape[-1] % BLOCK or name.endswith(".bias"):
        return "F32"
    if quantisation not in BY_LIBRARY:
        return "Q8_0" if quantisation == "q4_0" and not inside else PLAIN[quantisation]
    kind = BASE[quantisation]
    if not inside:
        last = (
            f"{family.head}.weight" if f"{family.head}.weight" in checkpoint.tensors else f"{family.embedding}.weight"
        )
        kind = "Q6_K" if name == last else kind
    else:
        block = int(name.removeprefix(f"{family.layers}.").partition(".")[0])
        kind = _in_block(name, kind, quantisation, block, blocks, checkpoint)
    return NARROW[kind] if shape[-1] % 256 else kind


def _in_block(name: str, kind: str, quantisation: str, block: int, blocks: int, checkpoint: Checkpoint) -> str:
    attention, mlp = checkpoint.family.attention, checkpoint.family.mlp
    more = block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2
    outputs = (mlp.output, mlp.experts.output if mlp.experts else mlp.output)
    down = any(f".{output}" in name for output in outputs)
    value = bool(attention.key_value) and f".{attention.key_value[-1]}." in name
    if quantisation in ("q4_k_m", "q5_k_m") and (down or value):
        return "Q6_K" if more else kind
    if quantisation == "q4_k_s" and (down or value):
        return "Q5_K" if block < (blocks // 8 if down else 4) else kind
    if quantisation == "q2_k" and (down or value or f".{attention.output}." in name):
        heads = next((each.heads for each in module_shapes(checkpoint) if each.kind == "attention"), 0)
        return "Q4_K" if value and heads >= 4 else "Q3_K"  # query heads of each KV group, in the first block
    if quantisation == "q3_k_m" and (down or value or f".{attention.output}." in name):
        first = blocks // 16 if down else 2 if value else 0
        return "Q5_K" if block < first else "Q4_K"
    return kind
