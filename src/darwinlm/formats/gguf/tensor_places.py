"""Where the tensors of a model lie in a GGUF file, for writing and reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.families.ending import BASE
from darwinlm.model.families.family import Family
from darwinlm.model.families.parts import Attention, Mlp, RowUnit
from darwinlm.model.families.stored_parts import stored_name

if TYPE_CHECKING:
    from gguf import TensorNameMap

PARTS = ("attn_q", "attn_k", "attn_v")
MLP_PARTS = ("ffn_gate", "ffn_up")
FUSED = {"attn_qkv": PARTS, "ffn_up": MLP_PARTS}
"""Tensors of several projections, where an architecture has them."""
ROWS_OF: dict[str, RowUnit] = {
    "attn_q": "query",
    "attn_k": "key_value",
    "attn_v": "key_value",
    "ffn_gate": "channel",
    "ffn_up": "channel",
}
"""Kinds of the rows of projections that may be fused."""
SUFFIXES = (".weight", ".bias", ".scale")


@dataclass(frozen=True)
class Group:
    """Projections of a sub-layer, whose rows may lie in tensors of their own in the file.

    Attributes:
        holder: Module of the block that holds them.
        part: The sub-layer.
        inputs: Their names in the block, each as often as it has parts.
        places: Names of these parts in the file, without `blk.N.` and suffix.
    """

    holder: str
    part: Attention | Mlp
    inputs: Sequence[str]
    places: Sequence[str]

    def places_of(self, name: str) -> list[str]:
        """Names in the file of the parts of a tensor of the block; empty if it is no projection."""
        leaf = "bias" if name.endswith("bias") else "weight"
        owner = name.removesuffix(f".{leaf}").removesuffix("_bias")
        pairs = zip(self.inputs, self.places, strict=True)
        return [f"{place}.{leaf}" for projection, place in pairs if projection == owner]


def groups_of(family: Family, layout: Layout) -> list[Group]:
    """The projections of a block: attention, MLP, and experts unless the architecture fuses theirs."""
    attention, mlp, experts = family.attention, family.mlp, family.mlp.experts
    inputs = [f"{attention.name}.{name}" for name in (*attention.query, *attention.key_value)]
    groups = [Group(attention.name, attention, inputs, PARTS[: len(inputs)])]
    inputs = [f"{mlp.name}.{name}" for name in (*mlp.inputs, mlp.output)]
    groups.append(Group(mlp.name, mlp, inputs, (*MLP_PARTS[-len(mlp.inputs) :], "ffn_down")))
    if experts is not None and "ffn_gate_up_exps" not in layout.architecture.fused:
        holder = f"{mlp.prefix}{experts.name}"
        inputs = [f"{holder}.{name}" for name in experts.inputs]
        groups.append(Group(holder, mlp, inputs, [f"{part}_exps" for part in MLP_PARTS]))
    return groups


def group_of(name: str, groups: Sequence[Group]) -> int:
    """Number of the innermost group that holds a tensor of the block; -1 without one."""
    return max((i for i, group in enumerate(groups) if name.startswith(f"{group.holder}.")), default=-1)


@cache
def _names(architecture: str) -> TensorNameMap:
    """The table of the package `gguf` from names in checkpoints to those in files, for a single block."""
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    return get_tensor_name_map(next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture), 1)


def place_of(name: str, family: Family, layout: Layout) -> str | None:
    """Name in the file of a tensor by its name in the model, in block 0 if it is in one; None without a place."""
    if family.ending == "states" and not name.startswith(BASE):
        name = BASE + name
    table = _names(layout.architecture.name)
    names = (_spelled(spelling, layout) for spelling in (name, stored_name(family, name)))
    place = next(filter(None, (table.get_name(spelling, SUFFIXES) for spelling in names)), None)
    if place is None:
        return None
    inside = str(place).removeprefix("blk.0.")
    return inside if inside.endswith(SUFFIXES) or inside in layout.architecture.bare else f"{inside}.weight"


def place_in_block(name: str, family: Family, layout: Layout) -> str | None:
    """The same by its name inside a block."""
    return place_of(f"{family.layers}.0.{name}", family, layout)


def exact_tensors(family: Family, layout: Layout) -> frozenset[str]:
    """Names in a file, without `blk.N.`, of tensors that are written in float32 (`Architecture.float32`)."""
    owners = (f"{family.layers}.0", "model")
    names = (f"{owner}.{leaf}" for leaf in layout.architecture.float32 for owner in owners)
    return frozenset(filter(None, (place_of(name, family, layout) for name in names)))


def _spelled(name: str, layout: Layout) -> str:
    for end, spelled in layout.architecture.spelled.items():
        name = name.removesuffix(end) + spelled if name.endswith(f".{end}") else name
    return f"{name.removesuffix('_bias')}.bias" if name.endswith("_bias") else name
