"""Stored parts of each tensor of a model.

In most checkpoints this is the tensor of the same name. Mixtures of experts are stored by expert, and partly under
other names, while the model has one tensor over all experts. Pruned models are stored with the model's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from darwinlm.families.family import Family


@dataclass(frozen=True)
class Parts:
    """Stored parts of one tensor of the model.

    Attributes:
        names: Stored names. Several parts are concatenated along dimension 0; several experts are stacked along a new
            first dimension.
        stacked: Whether the first dimension counts experts.
    """

    names: tuple[tuple[str, ...], ...]
    stacked: bool

    def flat(self) -> list[str]:
        """All stored names."""
        return [name for expert in self.names for name in expert]

    def shape(self, shapes: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of the model's tensor, from those of the stored ones."""
        if not self.stacked:
            return shapes(self.names[0][0])
        parts = [shapes(name) for name in self.names[0]]
        return (len(self.names), sum(part[0] for part in parts), *parts[0][1:])

    def join(self, tensors: Callable[[str], Tensor]) -> Tensor:
        """The model's tensor, from the stored ones."""
        if not self.stacked:
            return tensors(self.names[0][0])
        return torch.stack([torch.cat([tensors(name) for name in expert]) for expert in self.names])


def tensor_parts(
    family: Family, stored: Iterable[str], alone: Callable[[str], str | None] = lambda name: name
) -> dict[str, Parts]:
    """Parts of each tensor of the model by its name there, from the names of the stored ones.

    `alone` gives the name of a tensor in the language model alone; None for one that isn't in it.
    """
    result: dict[str, Parts] = {}
    experts: dict[str, dict[int, dict[str, str]]] = {}
    fused = {part: whole for whole, parts in family.stored.experts.items() for part in parts}
    for name in stored:
        renamed = alone(name)
        if renamed is None:
            continue
        for theirs, ours in family.stored.renamed.items():
            renamed = f"{renamed}.".replace(f".{theirs}.", f".{ours}.").removesuffix(".")
        match = (
            re.fullmatch(r"(.+)\.(\d+)\.(\w+)\.weight", renamed) if renamed.startswith(family.layers + ".") else None
        )
        if match and match[3] in fused:
            whole = f"{match[1]}.{fused[match[3]]}"
            experts.setdefault(whole, {}).setdefault(int(match[2]), {})[match[3]] = name
        else:
            result[renamed] = Parts(((name,),), stacked=False)
    for whole, by_expert in experts.items():
        wanted = family.stored.experts[whole.rpartition(".")[2]]
        complete = sorted(by_expert) == list(range(len(by_expert)))
        if complete and all(renamed.keys() == set(wanted) for renamed in by_expert.values()):
            names = tuple(tuple(by_expert[expert][part] for part in wanted) for expert in range(len(by_expert)))
            result[whole] = Parts(names, stacked=True)
    return result
