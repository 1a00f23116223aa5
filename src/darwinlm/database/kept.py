"""The kept part of a module at a level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.database.levels import Level
from darwinlm.errors import ArtifactError
from darwinlm.families.shapes import ModuleShape


@dataclass(frozen=True)
class Kept:
    """The kept part of a module at one level.

    Attributes:
        columns: [k] int64, kept columns of the output projection, ascending; [e, k] for the kept experts of a mixture.
        weight: [r, k] float32 (or [e, r, k]), the output projection's weights on them; None if nothing is removed.
        groups: [g] int64, kept KV heads of an attention, ascending.
        query_groups: For each kept query head its index in `groups`, if KV heads are used unevenly; else None.
        experts: [e] int64, kept experts of a mixture, ascending.
    """

    columns: Tensor
    weight: Tensor | None
    groups: Tensor | None = None
    query_groups: tuple[int, ...] | None = None
    experts: Tensor | None = None


def kept_groups(shape: ModuleShape, level: Level, columns: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    """KV heads kept with some columns of an attention's output projection, and their assignment to query heads.

    The shape is that before the cut. The level says how many KV heads stay: those in use, or all of them. Columns are
    [k] int64, ascending.

    Returns:
        [g] int64 KV heads, ascending, and for each kept query head its index among them; None if every KV head serves
        the same number of neighbouring query heads.
    """
    heads = (columns[:: shape.head_dim] // shape.head_dim).tolist()
    owner = shape.query_groups or [head // shape.heads for head in range(shape.width // shape.head_dim)]
    used = [owner[head] for head in heads]
    groups = sorted(set(used)) if level.groups < shape.groups else list(range(shape.groups))
    if len(groups) != level.groups:
        raise ArtifactError(
            f"{shape.name} keeps {len(groups)} KV heads, not {level.groups}: the level belongs to another database"
        )
    places = tuple(groups.index(group) for group in used)
    even = len(places) % max(len(groups), 1) == 0 and list(places) == [
        place for place in range(len(groups)) for _ in range(len(places) // len(groups))
    ]
    return torch.tensor(groups, dtype=torch.int64), None if even else places
