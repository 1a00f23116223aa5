"""A family in llama.cpp: the architecture of its GGUF files, and its differences from transformers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from darwinlm.model.families.parts import Closed

FusedTensor = Literal["attn_qkv", "ffn_up", "ffn_gate_up_exps"]


class Requirement(Closed):
    """Configurations that the architecture supports, by values of their fields."""

    fields: dict[str, Any]
    """Required values of fields. Fields that must not be set are null, false or empty."""
    otherwise: str
    """Why another configuration can't be exported, as a clause."""

    def meets(self, config: Any) -> bool:
        """Whether the fields have the required values."""
        values = ((getattr(config, name, None), wanted) for name, wanted in self.fields.items())
        return all(value == wanted or not (value or wanted) for value, wanted in values)


class Architecture(Closed):
    """Properties of an architecture of llama.cpp that affect tensors, keys, or the models that it supports."""

    name: str
    """Value of `general.architecture`."""
    permuted: bool = False
    """Whether rows of Q and K are reordered, because its rope rotates neighbouring columns instead of halves."""
    whole_heads: bool = True
    """Whether its rope rotates all columns of a head. Otherwise the family may rotate only a part of each head."""
    frequencies: bool = False
    """Whether it reads divisors of the rotary frequencies, which can also emulate a partial rotation (GLM)."""
    rounds: bool = False
    """Whether llama.cpp rounds the bounds of the rope scaling (yarn). The file is then compared with a model of rounded
    bounds."""
    period: int | None = None
    """Distance of layers without a sliding window, if the others have one."""
    fused: tuple[FusedTensor, ...] = ()
    """Tensors of several projections: Q, K and V, or both inputs of an MLP or of experts."""
    whole_depth: bool = False
    """Whether the kinds of layers follow from their numbers, so that no block may be omitted (SmolLM3)."""
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
    """Whether norm weights are stored with 1 added (Gemma)."""
    layer_norms: bool = False
    """Whether its norms are LayerNorms with biases (Nemotron)."""
    own_head: bool = False
    """Whether it reads an output projection even if the model ties it to the embedding."""
    multipliers: bool = False
    """Whether its keys scale the embedding, scores, residual stream and logits (Granite)."""
    caps: bool = False
    """Whether it caps scores and logits (Gemma 2)."""
    scores: Literal["attn_q", "attn_q_norm"] | None = None
    """Tensor that is multiplied by the ratio of llama.cpp's score scale to `query_pre_attn_scalar`."""
    large: int | None = None
    """Number of blocks of Gemma 27B, by which llama.cpp recognises it to scale its scores differently."""
    tensors: dict[str, str] = Field(default_factory=dict)
    """Transforms in `quirks/` of tensors by their names in a block, with spaces between several."""
    spelled: dict[str, str] = Field(default_factory=dict)
    """Ends of names, as the package `gguf` spells them."""
    activations: tuple[str, ...] = ("silu", "swish")
    """Activations of MLPs that it computes."""
    keys: dict[str, str | int | tuple[str, ...]] = Field(default_factory=dict)
    """Further keys by their methods of `gguf.GGUFWriter` without `add_`: a number, a field of the configuration, a
    product of fields, or a function in `quirks/` (a name with a dot). Empty values aren't written."""
    requires: tuple[Requirement, ...] = ()
    """Limits of the architecture."""
