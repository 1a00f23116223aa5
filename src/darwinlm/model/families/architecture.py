"""A family in llama.cpp: the architecture of its GGUF files, and its differences from transformers.

What data can't express are functions in `formats/gguf/quirks`, which fields name as `file.function`. Their arguments
and results are described there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from darwinlm.model.families.parts import Closed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FusedTensor = Literal["attn_qkv", "ffn_up", "ffn_gate_up_exps"]


class Requirement(Closed):
    """Configurations that the architecture supports, by values of their fields."""

    fields: dict[str, bool | int | float | str | list[object] | None]
    """Required values of fields. Fields that must not be set are null, false or empty."""
    otherwise: str
    """Why another configuration can't be exported, as a clause."""

    def meets(self, config: PreTrainedConfig) -> bool:
        """Whether the fields have the required values."""
        values = ((getattr(config, name, None), required) for name, required in self.fields.items())
        return all(value == required or not (value or required) for value, required in values)


class Architecture(Closed):
    """Properties of an architecture of llama.cpp that affect tensors, keys, or the models that it supports."""

    name: str
    """Value of `general.architecture`."""
    permuted: bool = False
    """Whether rows of Q and K are reordered, because its rope rotates neighbouring columns instead of halves."""
    whole_heads: bool = True
    """Whether its rope rotates all columns of a head. Otherwise the family may rotate only a part of each head."""
    frequencies: bool = False
    """Whether it reads divisors of the rotary frequencies, which can also emulate a partial rotation."""
    rope: str | None = None
    """Function in `quirks/` that completes the rotary embedding read from the configuration."""
    context: str | None = None
    """Function in `quirks/` for a shorter context in which the file and the model give the same results."""
    rounds: bool = False
    """Whether llama.cpp rounds the bounds of the rope scaling (yarn). The file is then compared with a model of rounded
    bounds."""
    period: int | None = None
    """Distance of layers without a sliding window, if the others have one."""
    fused: tuple[FusedTensor, ...] = ()
    """Tensors of several projections: Q, K and V, or both inputs of an MLP or of experts."""
    whole_depth: bool = False
    """Whether the kinds of layers follow from their numbers, so that no block may be omitted."""
    per_layer: bool = False
    """Whether head counts and widths may differ between layers."""
    unequal: Literal["deci", "openelm"] | None = None
    """Architecture for unequal layers: a Llama, if rearranged tensors make the blocks equivalent to its own, or one
    with normed queries and keys and a tied output."""
    skips_attention: bool = False
    """Whether layers after the first may have no heads."""
    groups_by_layer: bool = False
    """Whether each layer's number of KV heads is listed. It tells which layers have an attention."""
    square: bool = False
    """Whether query heads must fill the residual width."""
    unit_norms: bool = False
    """Whether norm weights are stored with 1 added."""
    plain_norms: tuple[str, ...] = ()
    """Norms, by their names in the file, that are stored as they are in spite of `unit_norms`."""
    layer_norms: bool = False
    """Whether its norms are LayerNorms with biases."""
    scores: Literal["first", "softmax"] | None = None
    """How it gives the score of a model that judges texts: as the first number of the last state, or by a matrix of its
    own and a softmax. None gives none."""
    own_head: bool = False
    """Whether it reads an output projection even if the model ties it to the embedding."""
    tensors: dict[str, str] = Field(default_factory=dict)
    """Functions in `quirks/` for tensors by their names in a block of the model, with spaces between several."""
    arranged: dict[str, str] = Field(default_factory=dict)
    """Functions in `quirks/` for tensors by their names in the file without `blk.N.`, `.weight` and `.bias`."""
    folded: dict[str, str] = Field(default_factory=dict)
    """The same for files of the architecture for unequal layers, which lacks some of this architecture's keys."""
    spelled: dict[str, str] = Field(default_factory=dict)
    """Ends of names, as the package `gguf` spells them."""
    bare: tuple[str, ...] = ()
    """Tensors in the file whose names have no `.weight` at their end."""
    float32: tuple[str, ...] = ()
    """Names in a block, or after `model.`, of small tensors that llama.cpp reads in float32 alone, or keeps so."""
    activations: tuple[str, ...] = ("silu", "swish")
    """Activations of MLPs that it computes."""
    keys: dict[str, str | int | tuple[str, ...]] = Field(default_factory=dict)
    """Further keys by their methods of `gguf.GGUFWriter` without `add_`, or other values of those that every file has:
    a number, a field of the configuration, a product of fields, or a function in `quirks/` (a name with a dot). None
    isn't written."""
    read: str | None = None
    """Functions in `quirks/`, with spaces between several, that complete the configuration that transformers reads
    from such a file."""
    requires: tuple[Requirement, ...] = ()
    """Limits of the architecture."""
