"""Tensors of a model under their names in a GGUF file, rearranged for its architecture.

Letters: m residual width, h columns of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from darwinlm.errors import ExportError
from darwinlm.export.gguf import places
from darwinlm.export.gguf.layout import Layout
from darwinlm.export.gguf.rope import rope_tensors
from darwinlm.export.reshape import Reshaper
from darwinlm.export.sizes import BlockSizes, Tensors, split_rows
from darwinlm.families.expert_tensors import by_rows, row_axis
from darwinlm.families.parts import Attention, Mlp, RowUnit
from darwinlm.families.shapes import row_segments

NORMS = {
    **{f"{name}_norm": f"attn_{name}_norm" for name in "qk"},
    "query_layernorm": "attn_q_norm",
    "key_layernorm": "attn_k_norm",
}
PARTS = ("attn_q", "attn_k", "attn_v")
MLP_PARTS = ("ffn_gate", "ffn_up")
NEIGHBOURS = ("ernie4_5", "glm", "glm4", "helium")
"""Families that also pair neighbouring columns in transformers, so that their rows keep their order."""
LARGE = {46: "gemma2", 62: "gemma3"}
"""Numbers of blocks by which llama.cpp recognises Gemma 27B, whose scores it scales differently."""


def permute_rows(tensor: Tensor, heads: int, turned: int | None = None) -> Tensor:
    """Reorder the rows of Q or K from halves to neighbours: row j of a head's first half, then of its second.

    The rotary embedding of transformers pairs columns j and j + h/2, that of llama.cpp's older architectures columns 2j
    and 2j + 1.

    Args:
        tensor: [heads · h, ...].
        heads: Number of heads.
        turned: Number of rotated rows of a head, from the first on; None is all. The others are not moved.
    """
    by_head = tensor.reshape(heads, -1, *tensor.shape[1:])
    turned = turned or by_head.shape[1]
    halves = by_head[:, :turned].reshape(heads, 2, turned // 2, *tensor.shape[1:])
    neighbours = halves.transpose(1, 2).reshape(heads, turned, *tensor.shape[1:])
    return torch.cat([neighbours, by_head[:, turned:]], 1).reshape(tensor.shape)


def gguf_tensors(reshaper: Reshaper, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file in order, in float32, with one block in memory at a time.

    Raises:
        ExportError: The model has a tensor that the architecture doesn't support.
    """
    yield from _outside(reshaper, layout)
    yield from rope_tensors(layout.features.rope, whole_heads=layout.architecture.whole_heads).items()
    for number, target in enumerate(layout.targets):
        for name, tensor in block_tensors(reshaper, layout, target).items():
            yield f"blk.{number}.{name}", tensor.contiguous()


def _outside(reshaper: Reshaper, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Embedding, final norm and head."""
    names = {
        f"{reshaper.family.embedding}.weight": "token_embd.weight",
        **{f"{reshaper.family.final_norm}.{leaf}": f"output_norm.{leaf}" for leaf in ("weight", "bias")},
        f"{reshaper.family.head}.weight": "output.weight",
    }
    config = reshaper.checkpoint.config
    tied = bool(getattr(config, "tie_word_embeddings", False))
    embedding, head = (1.0, 1.0) if not layout.scaled else (config.embedding_multiplier, 1 / config.logits_scaling)
    for name, tensor in reshaper.outside():
        if name in places.OUTSIDE and layout.architecture.places:
            yield places.OUTSIDE[name], tensor.float()
            continue
        if name not in names:
            raise _no_place(name, layout)
        place = names[name]
        if place == "output_norm.weight":
            yield (
                "token_embd_norm.weight" if layout.architecture.name == "lfm2" else place,
                _norm(tensor.float(), layout),
            )
        elif place == "output_norm.bias":
            yield place, tensor.float()
        elif place == "token_embd.weight":
            yield place, tensor.float() * embedding
            if tied and (layout.scaled or layout.architecture.own_head):
                yield "output.weight", tensor.float() * head
        elif not tied:
            yield place, tensor.float() * head


def block_tensors(reshaper: Reshaper, layout: Layout, target: BlockSizes) -> Tensors:
    """One block's tensors under the names that follow `blk.N.`."""
    known_places = _places(reshaper)
    tensors: Tensors = {}
    for name, raw in _separate(reshaper, layout, target).items():
        if name in places.XIELU:
            continue
        if (place := layout.architecture.places.get(name)) is not None:
            tensors[place] = _further(raw.float(), name, reshaper, layout)
            if place.endswith("_shexp.weight") and layout.shared:
                tensors[place] = _filled(tensors[place], layout.shared * target.width, int("down" in place))
            continue
        owner, _, leaf = name.rpartition(".")
        known = name in known_places
        if (not known and owner not in known_places) or (leaf == "bias" and not layout.architecture.biases):
            raise _no_place(f"{reshaper.checkpoint.block_prefix(target.block)}{name}", layout)
        place = known_places[name if known else owner]
        leaf = "weight" if known else leaf
        tensors[f"{place}.{leaf}"] = _arranged(raw.float(), place, leaf, reshaper, layout, target)
    if layout.architecture.fused:
        tensors = _joined(tensors, PARTS, "attn_qkv", layout)
    return _joined(tensors, MLP_PARTS, "ffn_up", layout) if layout.architecture.fused_mlp else tensors


def _places(reshaper: Reshaper) -> dict[str, str]:
    """Names of projections and norms in the file, by their names in a block with split tensors."""
    attention, mlp = reshaper.family.attention, reshaper.family.mlp
    places = {
        **{f"{attention.name}.{part}": part for part in PARTS},
        f"{attention.name}.{attention.output}": "attn_output",
        **{f"{attention.name}.{old}": new for old, new in NORMS.items()},
        **{f"{mlp.prefix}{part}": part for part in MLP_PARTS},
        f"{mlp.prefix}{mlp.output}": "ffn_down",
    }
    places |= {
        norm: place for norm, place in ((attention.input_norm, "attn_norm"), (mlp.input_norm, "ffn_norm")) if norm
    }
    if attention.post_norm and mlp.post_norm:
        places |= {attention.post_norm: "post_attention_norm", mlp.post_norm: "post_ffw_norm"}
    if mlp.experts is not None:
        experts = f"{mlp.prefix}{mlp.experts.name}"
        places |= {f"{experts}.{part}": f"{part}_exps" for part in MLP_PARTS}
        places |= {
            f"{experts}.{mlp.experts.output}": "ffn_down_exps",
            f"{mlp.prefix}{mlp.experts.router}": "ffn_gate_inp",
        }
    return places


def _separate(reshaper: Reshaper, layout: Layout, target: BlockSizes) -> Tensors:
    """A block's tensors under the file's names, with Q, K, V, gate and up split."""
    attention, mlp = reshaper.family.attention, reshaper.family.mlp
    projections: list[tuple[Attention | Mlp, str, Sequence[str], tuple[str, ...]]] = [
        (attention, attention.name, (*attention.query, *attention.key_value), PARTS),
        (mlp, mlp.name, mlp.inputs, MLP_PARTS[-len(mlp.inputs) :]),
    ]
    if mlp.experts is not None:
        projections.append((mlp, f"{mlp.prefix}{mlp.experts.name}", mlp.experts.inputs, MLP_PARTS))
    sizes: dict[RowUnit, int] = {
        "query": target.heads * reshaper.columns_of(target.block),
        "gated_query": 2 * target.heads * reshaper.columns_of(target.block),
        "key_value": target.groups * reshaper.columns_of(target.block),
        "channel": target.width,
    }
    stored_block = _split_latent(reshaper.block(target), reshaper.checkpoint.config)
    tensors = {name: by_rows(mlp, name.removeprefix(mlp.prefix), each) for name, each in stored_block.items()}
    further = () if mlp.name else layout.architecture.places
    fused = "" if mlp.name or mlp.experts is None else f"{mlp.experts.shared}.{mlp.inputs[0]}.weight"
    if fused in tensors and len(set(mlp.inputs)) < len(mlp.inputs):  # of an MLP beside experts
        owner = fused.partition(".")[0]
        halves = zip(MLP_PARTS, tensors.pop(fused).chunk(len(mlp.inputs)), strict=True)
        tensors |= {f"{owner}.{part}.weight": half for part, half in halves}
    for part, holder, stored, names in projections:
        for name in [name for name in tensors if name.startswith(holder + ".") and name not in further]:
            inside, tensor = name.removeprefix(part.prefix), tensors.pop(name)
            inner, dot, leaf = name.removeprefix(holder + ".").partition(".")
            if inner.endswith("_bias") and holder != mlp.name:  # of experts
                inner, dot, leaf = inner.removesuffix("_bias"), ".", "bias"
            places = [i for i, each in enumerate(stored) if each == inner]
            segments = row_segments(part, inside)
            pieces = split_rows(tensor, segments, sizes, row_axis(part, inside)) if places else [tensor]
            parts = [names[i] for i in places] or [inner]
            tensors |= {f"{holder}.{each}{dot}{leaf}": piece for each, piece in zip(parts, pieces, strict=True)}
    return tensors


def _split_latent(tensors: Tensors, config: Any) -> Tensors:
    """A block's tensors with the projection from a latent [r] to heads split: keys [n, r, h] and values [n, h, r]."""
    name = "self_attn.kv_b_proj.weight"
    if name not in tensors:
        return dict(tensors)
    by_head = tensors[name].view(config.num_attention_heads, -1, config.kv_lora_rank)
    keys, values = torch.split(by_head, [config.qk_nope_head_dim, config.v_head_dim], 1)
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    return rest | {"self_attn.k_b_proj.weight": keys.mT, "self_attn.v_b_proj.weight": values}


def _arranged(tensor: Tensor, place: str, leaf: str, reshaper: Reshaper, layout: Layout, target: BlockSizes) -> Tensor:
    """One tensor of a block, rearranged for the architecture."""
    config, rope = reshaper.checkpoint.config, layout.features.rope
    if place.endswith("_norm") and leaf != "bias":
        tensor = _norm(tensor, layout)
    if place == "attn_q_norm" and layout.architecture.name == "gemma3":
        return tensor * _score_scale(reshaper, layout)
    if place in ("attn_q", "attn_k"):
        heads = target.heads if place == "attn_q" else target.groups
        if layout.architecture.permuted and reshaper.family.model_type not in NEIGHBOURS:
            tensor = permute_rows(tensor, heads, rope.turned)
        if layout.architecture.whole_heads and rope.turned < rope.columns:
            # llama.cpp multiplies all columns by the rotation's factor, transformers only rotated ones.
            still = torch.ones(rope.columns)
            still[rope.turned :] /= rope.attention
            tensor = tensor * still.repeat(heads).reshape(-1, *[1] * (tensor.ndim - 1))
    if place == "attn_q" and layout.architecture.name == "gemma2":
        tensor = tensor * _score_scale(reshaper, layout)
    if layout.scaled and place == "attn_q":
        tensor = tensor * (config.attention_multiplier * reshaper.columns**0.5)
    if layout.scaled and place in ("attn_output", "ffn_down"):
        tensor = tensor * reshaper.family.residual_scale(config)
    return tensor


def _further(tensor: Tensor, name: str, reshaper: Reshaper, layout: Layout) -> Tensor:
    """A tensor of `Architecture.places`, rearranged."""
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    if leaf in ("conv1d", "conv"):
        tensor = tensor.squeeze(1)
    if leaf == "A_log":
        tensor = -tensor.exp()
    if name in ("mamba.A_log", "mamba.D"):
        tensor = tensor[:, None]
    if name == "mamba.norm.weight":
        tensor = tensor.view(reshaper.checkpoint.config.mamba_n_groups, -1)
    if leaf == "shared_expert_gate" or ".moe_statics." in name:
        tensor = tensor[0]
    if leaf == "shared_expert_gate" and not tensor.any():  # of a removed MLP
        tensor = tensor + 1  # llama.cpp computes the sigmoid of x as silu(x) / x in qwen2moe
    if "norm" in leaf and name.count(".") == 1:
        tensor = _norm(tensor, layout)
    tiled = name.startswith("linear_attn.") and layout.architecture.name != "qwen3next"
    return _tiled(tensor, leaf, reshaper.checkpoint.config) if tiled else tensor


def _filled(tensor: Tensor, size: int, axis: int) -> Tensor:
    """The tensor with zeros up to a size along an axis. Only one of a removed MLP, all zeros, may be larger."""
    shape = list(tensor.shape)
    shape[axis] = max(size - shape[axis], 0)
    return torch.cat([tensor, tensor.new_zeros(shape)], axis).narrow(axis, 0, size)


def _tiled(tensor: Tensor, leaf: str, config: Any) -> Tensor:
    """Reorder value heads of linear attention.

    Transformers gives key head k the next r value heads, llama.cpp those with the numbers k, k + n, k + 2n and so on,
    with n key heads.

    Args:
        tensor: A tensor of the linear attention.
        leaf: Its name.
        config: Configuration of the model.
    """
    n, share = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    columns = {"in_proj_a": 1, "in_proj_b": 1, "dt_bias": 1, "A_log": 1}.get(leaf, config.linear_value_head_dim)

    def moved(values: Tensor) -> Tensor:
        rest = values.shape[1:]
        return values.reshape(n, share, columns, *rest).transpose(0, 1).reshape(n * share * columns, *rest)

    if leaf == "out_proj":
        return moved(tensor.T).T
    if leaf in ("in_proj_qkv", "conv1d"):
        before = 2 * n * config.linear_key_head_dim
        return torch.cat([tensor[:before], moved(tensor[before:])])
    return tensor if leaf == "norm" else moved(tensor)


def _score_scale(reshaper: Reshaper, layout: Layout) -> float:
    """Factor on queries that turns llama.cpp's scale of scores into that of the configuration."""
    config, target = reshaper.checkpoint.config, layout.targets[0]
    largest = LARGE.get(len(layout.targets)) == layout.architecture.name
    assumed = config.hidden_size // target.heads if largest else reshaper.columns
    return float((assumed / config.query_pre_attn_scalar) ** 0.5)


def _joined(tensors: Tensors, parts: Sequence[str], name: str, layout: Layout) -> Tensors:
    """Several projections concatenated into one tensor."""
    for odd in [odd for odd in tensors if odd.startswith(tuple(parts)) and odd.endswith(".bias")]:
        raise _no_place(odd, layout)
    pieces = [tensors.pop(f"{part}.weight") for part in parts if f"{part}.weight" in tensors]
    return tensors | ({f"{name}.weight": torch.cat(pieces)} if pieces else {})


def _norm(tensor: Tensor, layout: Layout) -> Tensor:
    return tensor + 1 if layout.architecture.unit_norms else tensor


def _no_place(name: str, layout: Layout) -> ExportError:
    return ExportError(
        f"the model has a tensor {name}, which the llama.cpp architecture {layout.architecture.name} does not support"
    )
