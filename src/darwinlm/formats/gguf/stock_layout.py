"""Choice of the architecture of stock llama.cpp for a model, and of the padding.

Equal layers use the family's architecture. Unequal layers use one of `UNEQUAL`, if the family names it. Blocks without
sub-layers are left out. Shapes that llama.cpp can't load, or computes wrongly, are padded with zeros: a first block
without attention in `deci` (which reads the head size there), an absent attention in `openelm`, and an absent MLP
anywhere (width 0 would drop the attention's result).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from darwinlm.formats.gguf.pooled_outputs import SINCE, Reading, reading_of
from darwinlm.formats.gguf.quirks import quirks
from darwinlm.formats.gguf.rope import Rope, UnsupportedError, read_rope
from darwinlm.model.families.architecture import Architecture, Requirement
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import Family
from darwinlm.model.layer_sizes import BlockSizes, LayerSizes
from darwinlm.model.surgery.reshape import Reshaper

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UNEQUAL = {
    "deci": Architecture(
        name="deci", permuted=True, per_layer=True, skips_attention=True, frequencies=True, scores="first"
    ),
    "openelm": Architecture(
        name="openelm",
        fused=("attn_qkv",),
        per_layer=True,
        scores="first",
        requires=(
            Requirement(
                fields={"tie_word_embeddings": True},
                otherwise="the only architecture per layer with normed queries and keys has a tied output",
            ),
        ),
    ),
}
"""Architectures for unequal layers: `deci`, a Llama with head counts and MLP widths for each layer, and `openelm`,
which also normalises queries and keys."""
UNKNOWN = "llama.cpp has no architecture for this family"
ENCODER = "GGUF files of encoders aren't written"


@dataclass(frozen=True)
class Layout:
    """Layout of a model in a file.

    Attributes:
        architecture: Architecture of llama.cpp.
        targets: Sizes of the blocks in the file, in order, each with its index in the model.
        rope: Rotary embedding.
        context: Maximum context in which the file and the model give the same results.
        window: Window of sliding layers, if the architecture has such layers.
        notes: Padded, omitted or expanded parts, for the user.
        folded: `Architecture.folded` of the family if the file has an architecture for unequal layers instead.
        shared: Width of the shared experts as a multiple of that of the others; zeros fill it up.
        reading: What the file of a model that reads gives; None for a model that writes.
    """

    architecture: Architecture
    targets: tuple[BlockSizes, ...]
    rope: Rope
    context: int
    window: int | None
    notes: tuple[str, ...]
    folded: Mapping[str, str] = field(default_factory=dict)
    shared: int = 0
    reading: Reading | None = None


def choose_layout(reshaper: Reshaper, mlp_multiple: int = 32) -> Layout:
    """Choose the architecture and the padding; MLP widths are rounded up to `mlp_multiple`.

    Raises:
        UnsupportedError: No architecture of stock llama.cpp supports this model; the message gives the reason.
    """
    config, stock = reshaper.checkpoint.config, reshaper.family.gguf
    if stock is None:
        if reshaper.family.bidirectional:
            raise UnsupportedError(ENCODER, "transformers and sentence-transformers run it")
        raise UnsupportedError(UNKNOWN)
    columns = max(map(reshaper.columns_of, range(reshaper.checkpoint.n_blocks)))
    rope, context, window, remarks = _features(stock, reshaper.checkpoint, columns)
    rope = rope.with_rounded_bounds() if stock.rounds else rope
    keep = reshaper.family.tail is not None
    blocks = [
        replace(sizes, attention=sizes.attention.in_even_groups())
        for sizes in reshaper.sizes
        if keep or not sizes.empty
    ]
    if not blocks:
        raise UnsupportedError("all blocks are empty")
    reason = _unfit(reshaper, stock, blocks, rope)
    architecture = stock if reason is None else _unequal(reshaper.family, stock, config, rope, reason)
    notes = [
        f"block {sizes.block}: every query head gets a copy of its KV head ({sizes.attention.groups} → "
        f"{sizes.attention.heads} KV heads)"
        for sizes in reshaper.sizes
        if sizes.attention.owners is not None
    ]
    omitted = [sizes.block for sizes in reshaper.sizes if sizes.empty and not keep]
    if omitted:
        notes.append(f"omitted as empty: blocks {', '.join(map(str, omitted))} ({len(blocks)} blocks in the file)")
    targets = [
        _padded(sizes, architecture, reshaper, first=i == 0, multiple=mlp_multiple) for i, sizes in enumerate(blocks)
    ]
    notes += [
        f"block {new.block}: padded from {old.attention.heads} heads and {old.mlp.width} channels to "
        f"{new.attention.heads} and {new.mlp.width}"
        for old, new in zip(blocks, targets, strict=True)
        if old != new
    ]
    folded = {} if architecture is stock else stock.folded
    shared = max(_shared_multiple(reshaper, target) for target in targets)
    reading = reading_of(reshaper.checkpoint, architecture)
    if reading is not None and reading.in_basis:
        notes.append(SINCE)
    if reading is None and reshaper.checkpoint.answers:
        notes.append(
            f"llama.cpp gives no score in the architecture {architecture.name}: the file is one of a language model, "
            "whose probabilities of its answers tell the score"
        )
    return Layout(architecture, tuple(targets), rope, context, window, (*notes, *remarks), folded, shared, reading)


def _unfit(reshaper: Reshaper, stock: Architecture, blocks: Sequence[BlockSizes], rope: Rope) -> str | None:
    """Reason why the family's architecture doesn't support the model; None if it does."""
    mixtures = {(sizes.mlp.width, sizes.mlp.experts) for sizes in blocks if sizes.mlp.experts or not sizes.mlp.width}
    if reshaper.family.mlp.experts is not None and (len(mixtures) > 1 or (0, 0) in mixtures):
        raise UnsupportedError(
            "its mixtures of experts differ, and llama.cpp has one number of experts and one width for all blocks",
            "Prune with --for gguf, which makes them equal",
        )
    if stock.per_layer:
        return None
    if differ(blocks):
        return "its layers differ"
    heads = max(sizes.attention.heads for sizes in blocks)
    if stock.square and heads * reshaper.columns != reshaper.checkpoint.config.hidden_size:
        return "its heads don't fill the hidden size"
    if (stock.whole_depth or stock.period or reshaper.family.mixer) and len(blocks) < len(reshaper.sizes):
        return "whole blocks were removed"
    if rope.per_frequency and not stock.frequencies:
        return f"its rope scaling of the type {rope.kind} has a divisor for every frequency"
    return None


def _shared_multiple(reshaper: Reshaper, target: BlockSizes) -> int:
    """The smallest multiple of the width of a block's experts that its shared experts fit into; 0 without any."""
    experts, config = reshaper.family.mlp.experts, reshaper.checkpoint.config
    multiple = None if experts is None else experts.multiple(config)
    if multiple is None or not target.mlp.experts:
        return 0
    usual = reshaper.sizes[target.block].mlp.width * multiple
    width = getattr(config.per_layer_config[target.block], "shared_expert_width", None) or usual
    return -(-int(width) // target.mlp.width)


def differ(blocks: Sequence[BlockSizes]) -> bool:
    """Whether blocks differ in size; only attentions, mixtures, and MLPs are compared with each other."""
    attentions = {(sizes.attention.heads, sizes.attention.groups) for sizes in blocks if not sizes.mixer.width}
    mixtures = {(sizes.mlp.width, sizes.mlp.experts) for sizes in blocks if sizes.mlp.experts}
    dense = {sizes.mlp.width for sizes in blocks if not sizes.mlp.experts}
    differing = len(attentions) > 1 or len(mixtures) > 1 or len(dense) > 1
    return differing or (0, 0) in attentions or 0 in dense


def _padded(
    sizes: BlockSizes, architecture: Architecture, reshaper: Reshaper, *, first: bool, multiple: int
) -> BlockSizes:
    target = replace(sizes, mlp=replace(sizes.mlp, width=-(-max(sizes.mlp.width, 1) // multiple) * multiple))
    mixes = sizes.attention.width or sizes.mixer.width
    if not mixes and (first or not architecture.skips_attention):
        columns = reshaper.columns_of(sizes.block)
        target = replace(target, attention=LayerSizes("attention", columns, groups=1, head_dim=columns))
    return target


def _unequal(family: Family, stock: Architecture, config: PreTrainedConfig, rope: Rope, reason: str) -> Architecture:
    scaling = f"its rope scaling of the type {rope.kind} has a divisor for every frequency"
    if stock.unequal is not None:
        unequal = UNEQUAL[stock.unequal]
        for requirement in unequal.requires:
            if not requirement.meets(config) and family.ending == "language":  # the others have no output to tie
                raise UnsupportedError(f"{reason}, and {requirement.otherwise}")
        if rope.per_frequency and not unequal.frequencies:
            raise UnsupportedError(f"{scaling}, which llama.cpp reads neither in {stock.name} nor in {unequal.name}")
        return unequal
    if rope.per_frequency and not stock.frequencies:
        raise UnsupportedError(f"{scaling}, which its architecture ignores")
    if family.mixer is not None:
        raise UnsupportedError(f"{reason}, and in llama.cpp all blocks of this family have the same sizes")
    raise UnsupportedError(f"{reason}, and no architecture with sizes per layer supports this family's blocks")


def _features(stock: Architecture, checkpoint: Checkpoint, columns: int) -> tuple[Rope, int, int | None, list[str]]:
    """Read the features of a model with heads of so many columns.

    Returns:
        The rotary embedding, the maximum context in which the file and the model give the same results, the window of
        sliding layers if the architecture has such layers, and remarks for the user.

    Raises:
        UnsupportedError: The architecture doesn't support this.
    """
    config = checkpoint.config
    _check_features(stock, config)
    rope = read_rope(checkpoint, columns)
    if rope.turned < columns and stock.whole_heads and not stock.frequencies:
        raise UnsupportedError("only a part of each head is rotated")
    notes = []
    context, window = int(config.max_position_embeddings), None
    if "sliding_window_pattern" in stock.keys:
        window = int(config.sliding_window)
    elif stock.period is not None:
        window = _window_of_some(stock.period, config)
    elif (limit := _window_of_all(config)) is not None:
        notes.append(
            f"its attention slides over a window of {limit} tokens, which llama.cpp doesn't support in all layers: up "
            f"to this length results are the same, so the file's context is {limit} instead of {context}"
        )
        context = limit
    for shorter in quirks(stock.context):
        if (limited := shorter(rope, context)) is not None:
            context, remark = limited
            notes.append(remark)
    if rope.kind == "dynamic":
        notes.append(f"its rope scaling of the type dynamic starts after the file's context of {context} tokens")
    if rope.kind == "longrope" and context > rope.original:
        notes.append(
            f"rope factors for long texts: llama.cpp uses them if its context is larger than {rope.original} "
            "tokens, transformers if the text is longer"
        )
    return rope, context, window, notes


def _check_features(stock: Architecture, config: PreTrainedConfig) -> None:
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "silu")
    if activation not in stock.activations:
        raise UnsupportedError(f"its MLPs use {activation}")
    for requirement in stock.requires:
        if not requirement.meets(config):
            raise UnsupportedError(requirement.otherwise)


def _window_of_all(config: PreTrainedConfig) -> int | None:
    """Window of sliding layers; None if there are none."""
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    slides = 0 < window < config.max_position_embeddings and (not kinds or "sliding_attention" in kinds)
    return window if slides else None


def _window_of_some(period: int, config: PreTrainedConfig) -> int:
    """The same for an architecture with a fixed order of sliding layers."""
    slide = [kind == "sliding_attention" for kind in config.layer_types]
    if slide != [bool((i + 1) % period) for i in range(len(slide))]:
        raise UnsupportedError(f"in llama.cpp every {period}. layer has no window, this model has another order")
    return int(config.sliding_window)
