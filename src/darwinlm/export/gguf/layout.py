"""Which architecture of stock llama.cpp holds a model, and with which pads.

Equal layers go to the family's own architecture. Unequal ones go to `deci`, which reads head counts and MLP widths per
layer and is otherwise a Llama, or to `openelm`, which also norms queries and keys and has a tied output. Blocks without
any sub-layer are left out of the file. What llama.cpp can't load, or would compute wrongly without a word, is padded
with zeros here: an attention-free first block in `deci` (it reads the head size there), an absent attention in
`openelm`, an absent MLP anywhere (with width 0 the block's attention result is dropped).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from darwinlm.errors import ExportError
from darwinlm.export.reshape import Reshaper, plain_sizes, rounded
from darwinlm.export.sizes import BlockSizes


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp, as far as it concerns how tensors are written.

    Attributes:
        name: `general.architecture`.
        permuted: rows of Q and K are reordered, because its rope turns neighbouring columns instead of halves.
        fused: Q, K and V are one tensor.
        per_layer: head counts and widths may differ between layers.
        skips_attention: layers after the first may have no head.
        unit_norms: norm weights are stored with 1 added (Gemma).
    """

    name: str
    permuted: bool = False
    fused: bool = False
    per_layer: bool = False
    skips_attention: bool = False
    unit_norms: bool = False


LLAMA = Architecture("llama", permuted=True)
DECI = Architecture("deci", permuted=True, per_layer=True, skips_attention=True)
OPENELM = Architecture("openelm", fused=True, per_layer=True)
STOCK = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", unit_norms=True),
    "smollm3": Architecture("smollm3", permuted=True),
    "granite": Architecture("granite", permuted=True),
}
"""Architecture of a model with equal layers, by model type."""

ACTIVATIONS = {"gemma": ("gelu", "gelu_pytorch_tanh")}
SILU = ("silu", "swish")
NO_ROPE_STEP = 4  # of smollm3 in llama.cpp: every fourth layer has no rotary embedding


@dataclass(frozen=True)
class Layout:
    """How a model is laid out in a file.

    Attributes:
        architecture: of llama.cpp.
        targets: sizes of the blocks in the file, in order, each with its index in the model.
        notes: what was padded, left out or expanded, for people.
        scaled: multipliers of Granite that are multiplied into the weights.
    """

    architecture: Architecture
    targets: tuple[BlockSizes, ...]
    notes: tuple[str, ...]
    scaled: bool = False


def choose_layout(reshaper: Reshaper, *, mlp_multiple: int = 32) -> Layout:
    """Choose the architecture and the pads.

    Args:
        reshaper: the model.
        mlp_multiple: widths of MLPs are rounded up to a multiple of it.

    Raises:
        ExportError: no architecture of stock llama.cpp computes this model; the message says why.
    """
    family, config = reshaper.family.model_type, reshaper.checkpoint.config
    if family not in STOCK:
        raise _refused(family, "the export doesn't describe this family to llama.cpp yet")
    _check_features(family, config)
    kept = [plain_sizes(sizes) for sizes in reshaper.sizes if not sizes.empty]
    if not kept:
        raise _refused(family, "nothing is left in any block")
    equal = len({sizes.sizes for sizes in kept}) == 1 and 0 not in kept[0].sizes
    unequal = None if equal else "its layers differ"
    if family == "qwen2" and equal and kept[0].heads * reshaper.columns != config.hidden_size:
        unequal = "its heads don't fill the hidden size"  # stock `qwen2` wants square projections
    if family == "smollm3" and len(kept) < len(reshaper.sizes):
        unequal = "whole blocks are gone"
    architecture = STOCK[family] if unequal is None else _unequal(family, config, unequal)
    notes = [
        f"block {sizes.block}: every query head gets a copy of its KV head ({sizes.groups} → {sizes.heads} KV heads)"
        for sizes in reshaper.sizes
        if sizes.owners is not None
    ]
    left_out = [sizes.block for sizes in reshaper.sizes if sizes.empty]
    if left_out:
        notes.append(f"left out: {_blocks(left_out)}, of which nothing was left ({len(kept)} blocks in the file)")
    targets = [_padded(sizes, architecture, first=i == 0, multiple=mlp_multiple) for i, sizes in enumerate(kept)]
    notes += _pad_notes(kept, targets)
    return Layout(architecture, tuple(targets), tuple(notes), scaled=family == "granite" and architecture is DECI)


def _padded(sizes: BlockSizes, architecture: Architecture, *, first: bool, multiple: int) -> BlockSizes:
    target = replace(sizes, width=rounded(max(sizes.width, 1), multiple))
    if sizes.heads == 0 and (first or not architecture.skips_attention):
        target = replace(target, heads=1, groups=1)
    return target


def _pad_notes(kept: Sequence[BlockSizes], targets: Sequence[BlockSizes]) -> list[str]:
    notes = []
    pairs = list(zip(kept, targets, strict=True))
    heads = [new.block for old, new in pairs if not old.heads and new.heads]
    if heads:
        notes.append(f"one zero head instead of no attention: {_blocks(heads)}")
    empty = [new.block for old, new in pairs if not old.width]
    if empty:
        width = min(new.width for _, new in pairs)
        notes.append(f"an MLP of zeros, {width} wide, instead of none: {_blocks(empty)}")
    notes += [
        f"block {new.block}: MLP padded with zeros, {old.width} → {new.width} channels"
        for old, new in pairs
        if old.width and new.width != old.width
    ]
    return notes


def _blocks(blocks: Sequence[int]) -> str:
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def _unequal(family: str, config: Any, why: str) -> Architecture:
    if family in ("llama", "mistral", "qwen2", "granite"):
        return DECI
    if family == "qwen3":
        if not config.tie_word_embeddings:
            raise _refused(
                family, f"{why}, and the only architecture with normed queries and keys per layer has a tied output"
            )
        if _rope_type(config) == "llama3":
            raise _refused(family, f"{why}, and the architecture for it knows no rope scaling of the type llama3")
        return OPENELM
    raise _refused(family, f"{why}, and no architecture with sizes per layer computes this family's blocks")


def _rope_type(config: Any) -> str:
    return str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))


def _check_features(family: str, config: Any) -> None:
    """Refuse what an architecture of llama.cpp would ignore without a word."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or []
    if (window and window < config.max_position_embeddings and not kinds) or "sliding_attention" in kinds:
        raise _refused(family, f"its attention slides over a window of {window} tokens")
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS.get(family, SILU):
        raise _refused(family, f"its MLPs use {activation}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0)) not in (None, 1.0):
        raise _refused(family, "only a part of each head is rotated")
    if _rope_type(config) not in ("default", "linear", "llama3"):
        raise _refused(family, f"its rope scaling is of the type {_rope_type(config)}")
    if family == "smollm3":
        step = [int((i + 1) % NO_ROPE_STEP != 0) for i in range(config.num_hidden_layers)]
        if list(config.no_rope_layers) != step:
            raise _refused(
                family, "llama.cpp leaves out the rotary embedding in every fourth layer, this model elsewhere"
            )


def _refused(family: str, reason: str) -> ExportError:
    return ExportError(
        f"no architecture of stock llama.cpp can hold this {family} model: {reason}. Use --to vllm or --to hf, or "
        "--to dense for a model of stock shapes that any converter takes"
    )
