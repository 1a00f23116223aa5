"""Sizes of modules and blocks: the one vocabulary for what a module can be, is, and shows on the page.

A level of the search is sizes with their parameters (`units/levels.py`), and a module of a checkpoint is sizes with
their tensors (`families/shapes.py`). The configuration of a layer (`surgery/layer_table.py`), the keys of the latency
table and the figures of the report are derived from sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from darwinlm.model.families.parts import KINDS, ModuleKind, RowUnit

Place = tuple[int, ModuleKind]
"""Block and kind of a module."""


@dataclass(frozen=True)
class PlacedModule:
    """A module of a model, by its place: the index of its block, and its kind."""

    block: int
    kind: ModuleKind

    @property
    def place(self) -> Place:
        """Its block and kind."""
        return self.block, self.kind

    @property
    def name(self) -> str:
        """Name for messages: `block 3 mlp`."""
        return f"block {self.block} {self.kind}"


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one module. A removed module has only its kind.

    | field | attention | MLP | mixture of experts | mixer or tail |
    | --- | --- | --- | --- | --- |
    | `kind` | `attention` | `mlp` | `mlp` | `mixer`, `tail` |
    | `width` | columns of the output projection | channels | channels of an expert | columns of its output projection |
    | `groups` | KV groups (KV heads) | 0 | 0 | 0 |
    | `head_dim` | columns of a head | 0 | 0 | 0 |
    | `heads` | query heads of all groups: width / head_dim | 0 | 0 | 0 |
    | `heads_per_group` | query heads of a group; 0 if uneven | 0 | 0 | 0 |
    | `even` | whether all groups have equally many heads | true | true | true |
    | `owners` | group of each query head if uneven, else None | None | None | None |
    | `experts` | 0 | 0 | experts | 0 |
    | `shared` | 0 | 0 | channels of its shared expert, see below | 0 |

    A level that removes single query heads is uneven, and its owners are None until the database tells which heads
    stay. Attentions with compressed keys and values (multi-head latent attention) have a group for every query head.
    `shared` is 0 unless the configuration gives the width of the shared expert as a multiple of `width`. The shared
    expert is never cut, so the configuration of a narrower mixture has to state its width.
    """

    kind: ModuleKind
    width: int = 0
    groups: int = 0
    head_dim: int = 0
    experts: int = 0
    shared: int = 0
    even: bool = True
    owners: tuple[int, ...] | None = None

    @property
    def heads(self) -> int:
        """Query heads of all groups together."""
        return self.width // self.head_dim if self.head_dim else 0

    @property
    def heads_per_group(self) -> int:
        """Query heads of each KV group; 0 if groups may have different numbers of them, and without heads."""
        return self.heads // self.groups if self.even and self.groups else 0

    @property
    def owner_of_heads(self) -> tuple[int, ...]:
        """KV group of each query head, in order."""
        if self.owners is not None:
            return self.owners
        assert self.even, "the query heads of this level aren't chosen yet"
        return tuple(head // self.heads_per_group for head in range(self.heads))

    @property
    def rows(self) -> dict[RowUnit, int]:
        """Rows of each kind in the input projections, of each expert in a mixture."""
        return {
            "query": self.width,
            "gated_query": 2 * self.width,
            "key_value": self.groups * self.head_dim,
            "channel": self.width,
        }

    def in_even_groups(self) -> LayerSizes:
        """The same attention with a KV group for every query head, if its groups aren't even.

        Caches of transformers and GGUF files store it like this.
        """
        return self if self.even else replace(self, groups=self.heads, even=True, owners=None)


ModuleSizes = Mapping[Place, LayerSizes]
"""Sizes of the modules of a model; modules that aren't listed are removed."""


@dataclass(frozen=True)
class BlockSizes:
    """Sizes of the modules of one block; those that it lacks have only their kind.

    `block` is the block's index in the model.
    """

    block: int
    attention: LayerSizes = LayerSizes("attention")
    mixer: LayerSizes = LayerSizes("mixer")
    mlp: LayerSizes = LayerSizes("mlp")
    tail: LayerSizes = LayerSizes("tail")

    @property
    def empty(self) -> bool:
        """Whether the block has no attention, MLP or other token mixer."""
        return not (self.attention.width or self.mixer.width or self.mlp.width)

    @property
    def rows(self) -> dict[RowUnit, int]:
        """Rows of each kind in the input projections of its attention and its MLP."""
        return {**self.attention.rows, "channel": self.mlp.width}

    def of(self, kind: ModuleKind) -> LayerSizes:
        """Sizes of the module of a kind."""
        sizes: LayerSizes = getattr(self, kind)
        return sizes


def block_sizes(n_blocks: int, modules: ModuleSizes) -> list[BlockSizes]:
    """Sizes of every block of a model, from those of its modules."""
    return [
        BlockSizes(block, **{kind: modules[block, kind] for kind in KINDS if (block, kind) in modules})
        for block in range(n_blocks)
    ]
