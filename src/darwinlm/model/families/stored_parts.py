"""Stored parts of each tensor of a model.

In most checkpoints this is the tensor of the same name. Mixtures of experts are stored by expert, and partly under
other names, while the model has one tensor over all experts. Pruned models are stored with the model's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from darwinlm.model.families.family import Family


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


@cache
def _conversions(model_type: str) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """How transformers renames stored tensors, and puts together those of experts."""
    steps = get_checkpoint_conversion_mapping(model_type) or []
    renamings = [step for step in steps if type(step) is WeightRenaming]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    return renamings, converters


def stored_name(family: Family, name: str) -> str:
    """Name of a renamed tensor in a checkpoint; other names are unchanged."""
    for renaming in _conversions(family.model_type)[0]:
        name, _ = renaming.reverse_transform().rename_source_key(name)
    return name


def tensor_parts(
    family: Family, stored: Iterable[str], name_in_text: Callable[[str], str | None] = lambda name: name
) -> dict[str, Parts]:
    """Parts of each tensor of the model by its name there, from the names of the stored ones.

    `name_in_text` gives the name that a stored tensor has in the language model; None for tensors of other parts.
    """
    renamings, converters = _conversions(family.model_type)
    patterns = {pattern: step.source_patterns for step in converters for pattern in step.source_patterns}
    result: dict[str, Parts] = {}
    experts: dict[str, dict[tuple[int, str], str]] = {}
    for name in stored:
        inside = name_in_text(name)
        if inside is None:
            continue
        renamed, pattern = rename_source_key(inside, renamings, converters)
        expert = re.search(r"\.(\d+)\.\w+\.weight$", inside)
        if pattern is None or expert is None:
            result[renamed if pattern is None else inside] = Parts(((name,),), stacked=False)
        else:
            experts.setdefault(renamed, {})[int(expert[1]), pattern] = name
    for combined, stored_names in experts.items():
        sources = patterns[next(iter(stored_names))[1]]
        count = len(stored_names) // len(sources)
        if stored_names.keys() == set(product(range(count), sources)):
            names = tuple(tuple(stored_names[expert, source] for source in sources) for expert in range(count))
            result[combined] = Parts(names, stacked=True)
    return result
