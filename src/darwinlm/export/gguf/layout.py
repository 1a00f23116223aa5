"""Choice of the architecture of stock llama.cpp for a model, and of the padding.

Equal layers use the family's architecture. So do mixtures of experts: zeros fill them up to the largest width, and to
the largest number of experts if the router has a bias to exclude those that are added. Other unequal layers use `deci`,
a Llama with head counts and MLP widths per layer, or `openelm`, which also normalises queries and keys and has a tied
output. Blocks without sub-layers are omitted.
Shapes that llama.cpp can't load, or computes wrongly, are padded with zeros: a first block without attention in `deci`
(which reads the head size there), an absent attention in `openelm`, and an absent MLP anywhere (width 0 would drop the
attention's result).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from darwinlm.export.gguf import places
from darwinlm.export.gguf.features import PERIODS, Features, read_features, refused
from darwinlm.export.reshape import Reshaper, plain_sizes, rounded
from darwinlm.export.sizes import BlockSizes
from darwinlm.families.family import Family


@dataclass(frozen=True)
class Architecture:
    """Properties of an architecture of llama.cpp that affect tensors.

    Attributes:
        name: `general.architecture`.
        permuted: Whether rows of Q and K are reordered, because its rope rotates neighbouring columns instead of
        halves.
        whole_heads: Whether its rope rotates all columns of a head.
        fused: Whether Q, K and V are one tensor.
        fused_mlp: Whether both inputs of an MLP are one tensor.
        per_layer: Whether head counts and widths may differ between layers.
        skips_attention: Whether layers after the first may have no heads.
        unit_norms: Whether norm weights are stored with 1 added (Gemma).
        layer_norms: Whether its norms are LayerNorms with biases (Nemotron).
        biases: Whether projections may have biases.
        frequencies: Whether it reads divisors of the rotary frequencies.
        rounds: Whether models are exported though llama.cpp rounds the bounds of their rope scaling (yarn). The file is
            then compared with the model of rounded bounds, and the difference between both models is reported.
        square: Whether query heads must fill the residual width.
        own_head: Whether it reads an output projection even if that of the model is its embedding.
        places: Further names in the file, by names inside a block.
        referenced: Whether `reference.py` computes it. Otherwise the file is checked by llama.cpp alone, which must
        then be installed.
    """

    name: str
    permuted: bool = False
    whole_heads: bool = True
    fused: bool = False
    fused_mlp: bool = False
    per_layer: bool = False
    skips_attention: bool = False
    unit_norms: bool = False
    layer_norms: bool = False
    biases: bool = False
    frequencies: bool = False
    rounds: bool = False
    square: bool = False
    own_head: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    referenced: bool = True


LLAMA = Architecture("llama", permuted=True, biases=True, frequencies=True)
DECI = Architecture("deci", permuted=True, per_layer=True, skips_attention=True, biases=True, frequencies=True)
OPENELM = Architecture("openelm", fused=True, per_layer=True)
STOCK = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": LLAMA,
    "qwen2": Architecture("qwen2", biases=True, square=True),
    "qwen3": Architecture("qwen3"),
    "qwen3_moe": Architecture("qwen3moe"),
    "gemma": Architecture("gemma", unit_norms=True),
    "gemma2": Architecture("gemma2", unit_norms=True),
    "gemma3_text": Architecture("gemma3", unit_norms=True),
    "smollm3": Architecture("smollm3", permuted=True),
    "granite": Architecture("granite", permuted=True, biases=True, frequencies=True),
    "phi3": Architecture("phi3", whole_heads=False, fused=True, fused_mlp=True, frequencies=True, square=True),
    "ministral3": LLAMA,
    "ernie4_5": LLAMA,
    "helium": LLAMA,
    "seed_oss": LLAMA,
    "olmo2": Architecture("olmo2", square=True, own_head=True),
    "exaone4": Architecture("exaone4", frequencies=True, square=True),
    "glm4": Architecture("glm4", whole_heads=False, fused_mlp=True, biases=True),
    "arcee": Architecture("arcee", permuted=True, frequencies=True),
    "gemma4_text": Architecture("gemma4", per_layer=True, frequencies=True, places=places.GEMMA4, referenced=False),
    "gemma4_text_experts": Architecture(
        "gemma4", per_layer=True, frequencies=True, places=places.GEMMA4_EXPERTS, referenced=False
    ),
    "qwen3_5_text": Architecture("qwen35", whole_heads=False, unit_norms=True, places=places.QWEN3_5, referenced=False),
    "qwen3_5_moe_text": Architecture(
        "qwen35moe", whole_heads=False, unit_norms=True, places=places.QWEN3_5_MOE, referenced=False
    ),
    "qwen3_next": Architecture(
        "qwen3next", whole_heads=False, unit_norms=True, places=places.QWEN3_NEXT, referenced=False
    ),
    "qwen2_moe": Architecture("qwen2moe", biases=True, square=True, places=places.QWEN2_MOE, referenced=False),
    "ernie4_5_moe": Architecture("ernie4_5-moe", places=places.ERNIE_MOE, referenced=False),
    "hunyuan_v1_moe": Architecture("hunyuan-moe", places=places.HUNYUAN_MOE, referenced=False),
    "minimax_m2": Architecture("minimax-m2", whole_heads=False, places=places.MINIMAX, referenced=False),
    "olmoe": Architecture("olmoe", square=True, referenced=False),
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "glm4_moe_lite"),
        Architecture("deepseek2", places=places.DEEPSEEK2, referenced=False),
    ),
    "gpt_oss": Architecture(
        "gpt-oss", biases=True, rounds=True, own_head=True, places=places.GPT_OSS, referenced=False
    ),
    "nemotron": Architecture(
        "nemotron",
        whole_heads=False,
        unit_norms=True,
        layer_norms=True,
        biases=True,
        square=True,
        own_head=True,
        referenced=False,
    ),
    "hunyuan_v1_dense": Architecture("hunyuan-dense", referenced=False),
    "apertus": Architecture("apertus", frequencies=True, own_head=True, referenced=False),
    "olmo3": Architecture("olmo2", square=True, own_head=True, referenced=False),
    "glm": LLAMA,
    "lfm2": Architecture("lfm2", square=True, places=places.LFM2, referenced=False),
    "granitemoehybrid": Architecture(
        "granitehybrid", permuted=True, biases=True, places=places.GRANITE_HYBRID, referenced=False
    ),
    "granitemoehybrid_experts": Architecture(
        "granitehybrid", permuted=True, biases=True, places=places.GRANITE_HYBRID_EXPERTS, referenced=False
    ),
    "glm4_moe": Architecture("glm4moe", whole_heads=False, biases=True, places=places.GLM4_MOE, referenced=False),
}
"""Architecture of a model with equal layers, by `Family.key`."""
TIED = ("qwen3",)
"""Families with an architecture for unequal layers that requires a tied output."""
LIKE_LLAMA = ("llama", "mistral", "qwen2", "granite", "phi3", "ministral3", "ernie4_5", "helium", "seed_oss", "glm")
"""Families whose blocks are equivalent to Llama's after rearranging tensors."""

UNKNOWN = {
    "vaultgemma": "llama.cpp has no architecture for this family",
}
"""Reasons for families without an architecture."""


@dataclass(frozen=True)
class Layout:
    """Layout of a model in a file.

    Attributes:
        architecture: Architecture of llama.cpp.
        targets: Sizes of the blocks in the file, in order, each with its index in the model.
        features: Further features that the keys describe.
        notes: Padded, omitted or expanded parts, for the user.
        scaled: Multipliers of Granite that are folded into the weights.
        shared: Width of the shared experts as a multiple of that of the others; zeros fill it up.
    """

    architecture: Architecture
    targets: tuple[BlockSizes, ...]
    features: Features
    notes: tuple[str, ...]
    scaled: bool = False
    shared: int = 0


def choose_layout(reshaper: Reshaper, *, mlp_multiple: int = 32) -> Layout:
    """Choose the architecture and the padding.

    Args:
        reshaper: The model.
        mlp_multiple: Multiple to which MLP widths are rounded up.

    Raises:
        ExportError: No architecture of stock llama.cpp supports this model; the message gives the reason.
    """
    family, config = reshaper.family.key, reshaper.checkpoint.config
    if family not in STOCK:
        raise refused(family, UNKNOWN[family])
    columns = max(map(reshaper.columns_of, range(reshaper.checkpoint.n_blocks)))
    features = read_features(reshaper.family.model_type, config, columns)
    if STOCK[family].rounds:
        features = replace(features, rope=features.rope.with_rounded_bounds())
    keep = reshaper.family.tail is not None
    kept = [plain_sizes(sizes) for sizes in reshaper.sizes if keep or not sizes.empty]
    if not kept:
        raise refused(family, "all blocks are empty")
    padded = _filled_up(reshaper, kept)
    why = _unfit(reshaper, padded, features)
    architecture = STOCK[family] if why is None else _unequal(reshaper.family, config, features, why)
    notes = [
        f"block {sizes.block}: every query head gets a copy of its KV head ({sizes.groups} → {sizes.heads} KV heads)"
        for sizes in reshaper.sizes
        if sizes.owners is not None
    ]
    left_out = [sizes.block for sizes in reshaper.sizes if sizes.empty and not keep]
    if left_out:
        notes.append(f"omitted as empty: {_blocks(left_out)} ({len(kept)} blocks in the file)")
    targets = [_padded(sizes, architecture, first=i == 0, multiple=mlp_multiple) for i, sizes in enumerate(padded)]
    notes += _pad_notes(kept, targets)
    scaled = family == "granite" and architecture is DECI
    shared = max(_shared_multiple(reshaper, target) for target in targets)
    return Layout(architecture, tuple(targets), features, (*notes, *features.notes), scaled, shared)


def _filled_up(reshaper: Reshaper, kept: Sequence[BlockSizes]) -> Sequence[BlockSizes]:
    """Sizes at which all mixtures of a model are equal, and so are the MLPs of its other blocks.

    Raises:
        ExportError: Blocks keep different numbers of experts, and added ones would change the router's choice.
    """
    mlp, family = reshaper.family.mlp, reshaper.family.key
    if mlp.experts is None:
        return kept
    counts = {sizes.experts for sizes in kept if sizes.experts}
    if len(counts) > 1 and mlp.experts.excluding is None:
        raise refused(
            family,
            f"its blocks keep different numbers of experts ({min(counts)} to {max(counts)}), llama.cpp has one number "
            "for all blocks, and added ones would change the router's choice",
            "Use --to hf, or prune with units.experts=width: it narrows experts instead of dropping them, and the file "
            "pads them",
        )
    count = max(counts, default=mlp.experts.chosen_of(reshaper.checkpoint.config))
    output = f"{mlp.prefix}{mlp.experts.name}.{mlp.experts.output}"
    mixtures = [output in reshaper.template[sizes.block] for sizes in kept]
    equal = [replace(sizes, experts=count if mixture else 0) for sizes, mixture in zip(kept, mixtures, strict=True)]
    widest = {each.experts: max(other.width for other in equal if other.experts == each.experts) for each in equal}
    return [replace(sizes, width=widest[sizes.experts]) for sizes in equal]


def _unfit(reshaper: Reshaper, kept: Sequence[BlockSizes], features: Features) -> str | None:
    """Reason why the family's architecture doesn't support the model; None if it does."""
    family, stock = reshaper.family.key, STOCK[reshaper.family.key]
    if stock.per_layer:
        return None
    if differ(kept):
        return "its layers differ"
    if stock.square and max(sizes.heads for sizes in kept) * reshaper.columns != reshaper.checkpoint.config.hidden_size:
        return "its heads don't fill the hidden size"
    if (family == "smollm3" or family in PERIODS or reshaper.family.mixer) and len(kept) < len(reshaper.sizes):
        return "whole blocks were removed"
    if features.rope.per_frequency and not stock.frequencies:
        return f"its rope scaling of the type {features.rope.kind} has a divisor for every frequency"
    return None


def _shared_multiple(reshaper: Reshaper, target: BlockSizes) -> int:
    """The smallest multiple of the width of a block's experts that its shared experts fit into; 0 without any."""
    experts, config = reshaper.family.mlp.experts, reshaper.checkpoint.config
    multiple = None if experts is None else experts.multiple(config)
    if multiple is None or not target.experts:
        return 0
    usual = reshaper.sizes[target.block].width * multiple
    width = getattr(config.per_layer_config[target.block], "shared_expert_width", None) or usual
    return -(-int(width) // target.width)


def differ(kept: Sequence[BlockSizes]) -> bool:
    """Whether blocks differ in size; only attentions, mixtures, and MLPs are compared with each other."""
    attentions = {sizes.sizes[:2] for sizes in kept if not sizes.mixer}
    mixtures = {(sizes.width, sizes.experts) for sizes in kept if sizes.experts}
    dense = {sizes.width for sizes in kept if not sizes.experts}
    unlike = len(attentions) > 1 or len(mixtures) > 1 or len(dense) > 1
    return unlike or (0, 0) in attentions or 0 in dense


def _padded(sizes: BlockSizes, architecture: Architecture, *, first: bool, multiple: int) -> BlockSizes:
    target = replace(sizes, width=rounded(max(sizes.width, 1), multiple))
    if sizes.heads == 0 and not sizes.mixer and (first or not architecture.skips_attention):
        target = replace(target, heads=1, groups=1)
    return target


def _pad_notes(kept: Sequence[BlockSizes], targets: Sequence[BlockSizes]) -> list[str]:
    notes = []
    pairs = list(zip(kept, targets, strict=True))
    heads = [new.block for old, new in pairs if not old.heads and new.heads]
    if heads:
        notes.append(f"one zero head instead of no attention: {_blocks(heads)}")
    empty = [new for old, new in pairs if not old.width]
    if empty:
        width = min(new.width for new in empty)
        notes.append(f"an MLP of zeros, {width} wide, instead of none: {_blocks([new.block for new in empty])}")
    notes += [
        f"block {new.block}: MLP padded with zeros, {old.width} → {new.width} channels"
        for old, new in pairs
        if old.width and new.width != old.width
    ]
    notes += [
        f"block {new.block}: {old.experts} → {new.experts} experts; the router's bias excludes the added ones"
        for old, new in pairs
        if 0 < old.experts < new.experts
    ]
    return notes


def _blocks(blocks: Sequence[int]) -> str:
    return f"block{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"


def _unequal(named: Family, config: Any, features: Features, why: str) -> Architecture:
    family = named.key
    if family in LIKE_LLAMA:
        return DECI
    if features.rope.per_frequency and family not in TIED and not STOCK[family].frequencies:
        kind = features.rope.kind
        raise refused(
            family,
            f"its rope scaling of the type {kind} has a divisor for every frequency, which its architecture ignores",
        )
    if family in TIED:
        if not config.tie_word_embeddings:
            raise refused(
                family,
                f"{why}, and the only architecture per layer with normed queries and keys has a tied output",
            )
        if features.rope.per_frequency:
            kind = features.rope.kind
            raise refused(
                family,
                f"its rope scaling of the type {kind} has a divisor for every frequency, which no architecture with "
                "normed queries and keys reads",
            )
        return OPENELM
    if named.mixer is not None:
        raise refused(family, f"{why}, and in llama.cpp all blocks of this family have the same sizes")
    raise refused(family, f"{why}, and no architecture with sizes per layer supports this family's blocks")
