"""Sizes of GGUF files, predicted from the shapes of a model's weights.

The rules for mixtures of types are those of llama.cpp's quantiser (`llama_tensor_get_type`), without its exceptions for
single architectures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from darwinlm.formats.gguf.header import ELEMENTS
from darwinlm.formats.gguf.rope import UnsupportedError
from darwinlm.formats.gguf.stock_layout import UNEQUAL, choose_layout
from darwinlm.formats.gguf.tokenizer_keys import read_tokenizer
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.parts import Mlp
from darwinlm.model.families.shapes import ModuleShape, Shapes, module_shapes, resized
from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.quantisation import LLAMA_CPP, QUANTISATIONS, WRITTEN
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runtime.errors import ExportError

BLOCK = 32
"""Weights of a row that the coarsest types round together, if they aren't more."""
TENSOR, KEYS = 60, 1024
"""Bytes of a tensor's entry with its padding, and of the keys without the tokenizer's."""


@dataclass(frozen=True)
class FileSizes:
    """Sizes of the tensors of a model, or of smaller versions of it, in a file of one quantisation.

    `fused` tells whether queries, keys and values are one tensor in the file.
    """

    checkpoint: Checkpoint
    quantisation: str
    fused: bool = False

    def all_tensors(self, shapes: Shapes) -> int:
        """Bytes of all tensors of a model, from their shapes by name."""
        blocks_with: dict[str, list[int]] = {}
        for name in shapes:
            block, inside = self._parts(name)
            if inside:
                blocks_with.setdefault(inside, []).append(block)
        total = 0
        for name, shape in shapes.items():
            block, inside = self._parts(name)
            blocks = sorted(blocks_with[inside]) if inside else [0]
            total += self.tensor(name, shape, blocks.index(block), len(blocks))
        return total

    def tensor(self, name: str, shape: tuple[int, ...], number: int = 0, count: int = 1) -> int:
        """Bytes of a tensor, the `number`th of `count` in as many blocks."""
        kind = ELEMENTS[self._type(name, shape, number, count)]
        return prod(shape) // kind.weights * kind.bytes

    def module(self, shape: ModuleShape, sizes: LayerSizes) -> int:
        """Bytes of a module cut to other sizes. A removed MLP is written as one of zeros."""
        count = self.checkpoint.n_blocks
        tensors = module_tensors(self.checkpoint, shape, sizes)
        return sum(self.tensor(name, size, shape.block, count) for name, size in tensors.items())

    def _parts(self, name: str) -> tuple[int, str]:
        """The block of a tensor and its name inside it; none outside the blocks."""
        layers = f"{self.checkpoint.family.layers}."
        block, _, inside = name.removeprefix(layers).partition(".")
        return (int(block), inside) if name.startswith(layers) else (0, "")

    @cached_property
    def _heads(self) -> int:
        """Query heads of each KV group, in the first block with attention."""
        shapes = module_shapes(self.checkpoint)
        return next((shape.sizes.heads_per_group for shape in shapes if shape.kind == "attention"), 0)

    def _type(self, name: str, shape: tuple[int, ...], number: int, count: int) -> str:
        family, (_, inside) = self.checkpoint.family, self._parts(name)
        experts = family.mlp.experts
        router = experts is not None and f".{experts.router}." in name
        exact = (inside or name.removeprefix("model.")) in (family.gguf.float32 if family.gguf is not None else ())
        if exact or len(shape) < 2 or shape[-1] % BLOCK or name.endswith(".bias") or router:
            return "F32"
        quantisation = QUANTISATIONS[self.quantisation]
        kind = quantisation.element
        if quantisation.by != LLAMA_CPP:
            return "Q8_0" if kind == "Q4_0" and not inside else kind
        if inside:
            kind = self._in_block(inside, kind, number, count)
        elif name == f"{family.head if self._has_head else family.embedding}.weight":
            kind = "Q6_K"
        return ELEMENTS[kind].narrow if shape[-1] % ELEMENTS[kind].weights else kind

    @cached_property
    def _has_head(self) -> bool:
        stock = self.checkpoint.family.gguf
        tied = self.checkpoint.config.tie_word_embeddings or self.checkpoint.family.ending != "language"
        return not tied or (stock is not None and stock.own_head)

    def _in_block(self, inside: str, kind: str, number: int, count: int) -> str:
        attention, mlp = self.checkpoint.family.attention, self.checkpoint.family.mlp
        quantisation = self.quantisation
        use_more_bits = number < count // 8 or number >= 7 * count // 8 or (number - count // 8) % 3 == 2
        outputs = (mlp.output, mlp.experts.output if mlp.experts else mlp.output)
        down = any(f".{output}" in inside for output in outputs)
        values = attention.segments if self.fused else attention.key_value[-1:]  # one tensor counts as values
        value = any(f".{part}." in inside for part in values)
        if quantisation in ("q4_k_m", "q5_k_m") and (down or value):
            return "Q6_K" if use_more_bits else kind
        if quantisation == "q4_k_s" and (down or value):
            return "Q5_K" if number < (count // 8 if down else 4) else kind
        if quantisation == "q2_k" and (down or value or f".{attention.output}." in inside):
            return "Q4_K" if value and self._heads >= 4 else "Q3_K"
        if quantisation == "q3_k_m" and (down or value or f".{attention.output}." in inside):
            first = count // 16 if down else 2 if value else 0
            return "Q5_K" if number < first else "Q4_K"
        return kind


def module_tensors(checkpoint: Checkpoint, shape: ModuleShape, sizes: LayerSizes) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a module in a file, cut or padded to other sizes, without those that are gone."""
    part, prefix = checkpoint.family.module(shape.kind), checkpoint.block_prefix(shape.block)
    if sizes.width == 0 and (not isinstance(part, Mlp) or shape.sizes.experts):
        return {}
    if isinstance(part, Mlp):
        sizes = replace(sizes, width=max(-(-sizes.width // BLOCK), 1) * BLOCK)
    return {
        prefix + name: resized(part, name.removeprefix(part.prefix), size, sizes, output=name == shape.output)
        for name, size in shape.tensors.items()
    }


def file_tensors(checkpoint: Checkpoint, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The tensors of a model that a file has: with a head of its own where its architecture needs one."""
    family, stock = checkpoint.family, checkpoint.family.gguf
    tensors, head = dict(shapes), f"{family.head}.weight"
    if checkpoint.config.tie_word_embeddings or family.ending != "language":
        tensors.pop(head, None)
        if stock is not None and stock.own_head:
            tensors[head] = tensors[f"{family.embedding}.weight"]
    return tensors


def joins_projections(checkpoint: Checkpoint, *, equal: bool) -> bool:
    """Whether a file of smaller models has queries, keys and values as one tensor."""
    stock = checkpoint.family.gguf
    smaller = UNEQUAL.get(stock.unequal or "", stock) if stock is not None and not equal else stock
    return smaller is not None and "attn_qkv" in smaller.fused


def header_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of a file without its tensors, from the model's tokenizer.

    Raises ExportError if llama.cpp has no tokenizer of this kind.
    """
    keys = read_tokenizer(checkpoint.folder, checkpoint.tokenizer(), int(checkpoint.config.vocab_size))
    return (
        KEYS + TENSOR * len(checkpoint.tensors) + sum(len(name) + 12 + _stored(value) for name, value in keys.items())
    )


def _stored(value: object) -> int:
    if isinstance(value, str):
        return 8 + len(value.encode())
    return 12 + sum(map(_stored, value)) if isinstance(value, list) else 4


def predicted_sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of a checkpoint's file by quantisation, the largest first.

    Empty if llama.cpp can't run the model or has no tokenizer of its kind.
    """
    try:
        layout = choose_layout(Reshaper(checkpoint))
        header = header_bytes(checkpoint)
    except (UnsupportedError, ExportError):
        return {}
    stored = checkpoint.shapes()
    shapes = file_tensors(checkpoint, stored)
    modules = module_shapes(checkpoint, stored)
    for target in layout.targets:  # with the sub-layers that the file fills up with zeros
        for sizes in (target.attention, target.mlp):
            alike = sorted(
                (shape for shape in modules if shape.kind == sizes.kind), key=lambda shape: shape.block != target.block
            )
            if alike and sizes.width:
                shapes |= module_tensors(checkpoint, replace(alike[0], block=target.block), sizes)
    fused = "attn_qkv" in layout.architecture.fused
    predicted = {
        name: header + FileSizes(checkpoint, name, fused).all_tensors(shapes)
        for name in WRITTEN
        if QUANTISATIONS[name].columns > 1
    }
    return dict(sorted(predicted.items(), key=lambda size: -size[1]))
