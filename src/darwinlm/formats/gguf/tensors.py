"""Tensors of a model under their names in a GGUF file, rearranged for its architecture.

Letters: m residual width, h columns of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from darwinlm.formats.gguf.pooled_outputs import SCORES, score_row, score_rows
from darwinlm.formats.gguf.quirks import quirks
from darwinlm.formats.gguf.rope import rope_tensors
from darwinlm.formats.gguf.score_basis import ScoreBasis
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.formats.gguf.tensor_places import FUSED, group_of, groups_of, place_in_block, place_of
from darwinlm.model.families.expert_tensors import by_rows, row_axis
from darwinlm.model.families.shapes import row_segments
from darwinlm.model.layer_sizes import BlockSizes
from darwinlm.model.surgery.padding import Tensors, split_rows
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runtime.errors import ExportError

LAST_NORM = "output_norm.weight"


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
    basis = _score_basis(reshaper, layout)
    for name, tensor in _outside(reshaper, layout):
        yield name, tensor if basis is None else basis.last_gains() if name == LAST_NORM else basis.rows(tensor)
    if layout.reading is not None and layout.reading.probabilities:
        yield SCORES, score_rows(reshaper.checkpoint)
    yield from rope_tensors(layout.rope, whole_heads=layout.architecture.whole_heads).items()
    for number, target in enumerate(layout.targets):
        tensors = block_tensors(reshaper, layout, target)
        for name, tensor in (tensors if basis is None else basis.block(tensors)).items():
            yield f"blk.{number}.{name}", tensor.contiguous()


def _score_basis(reshaper: Reshaper, layout: Layout) -> ScoreBasis | None:
    """The basis of the residual stream in which the file holds a model; None for the model's own."""
    if layout.reading is None or not layout.reading.in_basis:
        return None
    gains = next(tensor for name, tensor in _outside(reshaper, layout) if name == LAST_NORM)
    return ScoreBasis.of(score_row(reshaper.checkpoint), gains)


def _outside(reshaper: Reshaper, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    config = reshaper.checkpoint.config
    reads = layout.reading is not None  # llama.cpp then needs no output, and takes the embedding where it asks for one
    tied = reads or bool(getattr(config, "tie_word_embeddings", False))
    for name, raw in reshaper.outside():
        place, tensor = place_of(name, reshaper.family, layout), raw.float()
        if tied and name == f"{reshaper.family.head}.weight":
            continue
        if place is None:
            raise _no_place(name, layout)
        if place == LAST_NORM:
            yield place, _norm(tensor, layout)
        elif place == "token_embd.weight":
            yield place, _apply_quirks(tensor, "token_embd", reshaper, layout)
            if tied and ("output" in layout.folded or layout.architecture.own_head):
                yield "output.weight", _apply_quirks(tensor, "output", reshaper, layout)
        else:
            yield place, _apply_quirks(tensor, place.rpartition(".")[0], reshaper, layout)


def block_tensors(reshaper: Reshaper, layout: Layout, target: BlockSizes) -> Tensors:
    """One block's tensors under the names that follow `blk.N.`."""
    tensors: Tensors = {}
    for name, split, raw in _separate(reshaper, layout, target):
        place = split or place_in_block(name, reshaper.family, layout)
        if place is None:
            raise _no_place(f"{reshaper.checkpoint.block_prefix(target.block)}{name}", layout)
        tensors[place] = _arrange(raw.float(), place, reshaper, layout, target)
    for fused, parts in FUSED.items():
        if fused in layout.architecture.fused:
            tensors = _fuse(tensors, parts, fused)
    return tensors


def _separate(reshaper: Reshaper, layout: Layout, target: BlockSizes) -> Iterator[tuple[str, str | None, Tensor]]:
    """A block's tensors by name, with Q, K, V, gate and up split; these and MLP outputs have their name in the file."""
    mlp, groups = reshaper.family.mlp, groups_of(reshaper.family, layout)
    stored = dict(reshaper.block(target))
    for name in [name for name in stored if name in layout.architecture.tensors]:
        result: Tensor | Tensors = stored[name].float()
        for transform in quirks(layout.architecture.tensors[name]):
            result = transform(result, reshaper.checkpoint.config)
        if isinstance(result, Tensor):
            stored[name] = result
        else:
            del stored[name]
            stored |= result
    for name in sorted(stored, key=lambda name: group_of(name, groups)):
        tensor = by_rows(mlp, name.removeprefix(mlp.prefix), stored[name])
        number = group_of(name, groups)
        if number < 0:
            yield name, None, tensor
            continue
        part = groups[number].part
        inside, names = name.removeprefix(part.prefix), groups[number].places_of(name)
        axis, segments = row_axis(part, inside), row_segments(part, inside)
        rows = split_rows(tensor, segments, target.rows, axis)
        pieces = rows or (tensor.chunk(len(names)) if names else [tensor])
        yield from ((name, place, piece) for place, piece in zip_longest(names, pieces))


def _arrange(tensor: Tensor, place: str, reshaper: Reshaper, layout: Layout, target: BlockSizes) -> Tensor:
    """One tensor of a block, rearranged for the architecture."""
    kind = place.rpartition(".")[0]
    if kind.endswith("_norm") and kind not in layout.architecture.plain_norms and place.endswith(".weight"):
        tensor = _norm(tensor, layout)
    if kind in ("attn_q", "attn_k"):
        heads = target.attention.heads if kind == "attn_q" else target.attention.groups
        tensor = _order_for_rotation(tensor, heads, reshaper, layout)
    tensor = _apply_quirks(tensor, kind, reshaper, layout)
    if kind.endswith("_shexp") and layout.shared:
        tensor = _pad_with_zeros(tensor, layout.shared * target.mlp.width, int("down" in kind))
    return tensor


def _order_for_rotation(tensor: Tensor, heads: int, reshaper: Reshaper, layout: Layout) -> Tensor:
    """Queries or keys for the rotary embedding of the architecture."""
    if layout.architecture.permuted and not reshaper.family.attention.neighbours:
        tensor = permute_rows(tensor, heads, layout.rope.turned)
    gains = rotation_gains(layout, heads)
    return tensor if gains is None else tensor * gains.reshape(-1, *[1] * (tensor.ndim - 1))


def rotation_gains(layout: Layout, heads: int) -> Tensor | None:
    """Factors [heads · h] on rows of queries or keys, if only a part of each head is rotated; None without any.

    llama.cpp multiplies all columns by the rotation's factor, transformers only rotated ones.
    """
    rope = layout.rope
    if not layout.architecture.whole_heads or rope.turned == rope.columns:
        return None
    gains = torch.ones(rope.columns)
    gains[rope.turned :] /= rope.attention
    return gains.repeat(heads)


def _pad_with_zeros(tensor: Tensor, size: int, axis: int) -> Tensor:
    """The tensor with zeros up to a size along an axis."""
    shape = list(tensor.shape)
    shape[axis] = size - shape[axis]
    return torch.cat([tensor, tensor.new_zeros(shape)], axis)


def _apply_quirks(tensor: Tensor, kind: str, reshaper: Reshaper, layout: Layout) -> Tensor:
    """A tensor with the values that its family needs in this architecture."""
    for functions in (layout.architecture.arranged, layout.folded):
        for change in quirks(functions.get(kind)):
            tensor = change(tensor, reshaper, layout)
    return tensor


def _fuse(tensors: Tensors, parts: Sequence[str], name: str) -> Tensors:
    pieces = [tensors.pop(f"{part}.weight") for part in parts if f"{part}.weight" in tensors]
    return tensors | ({f"{name}.weight": torch.cat(pieces)} if pieces else {})


def _norm(tensor: Tensor, layout: Layout) -> Tensor:
    return tensor + 1 if layout.architecture.unit_norms else tensor


def _no_place(name: str, layout: Layout) -> ExportError:
    return ExportError(
        f"the model has a tensor {name}, which the llama.cpp architecture {layout.architecture.name} does not support"
    )
