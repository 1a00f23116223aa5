"""Biases that the smaller model has and the dense one does not.

As in FLAP (arXiv 2312.11983), the bias of an output projection holds the mean of the removed part. Configurations have
one switch for all projections of a sub-layer, so the input projections get biases of zeros.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from darwinlm.errors import RecipeError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import Family, ModuleKind
from darwinlm.recipe import RefitSettings


def biased_kinds(settings: RefitSettings, checkpoint: Checkpoint) -> tuple[ModuleKind, ...]:
    """Modules whose output projections the refit gives a bias.

    Raises:
        RecipeError: The family's configuration has no field for such a bias.
    """
    if not settings.enabled:
        return ()
    family = checkpoint.family
    able = [kind for kind in settings.bias if _can(family, kind)]
    unable = [kind for kind in settings.bias if kind not in able]
    if unable:
        instead = f"set refit.bias=[{', '.join(able)}]" if able else "set refit.bias=false"
        raise RecipeError(
            f"refit.bias: the configuration of {family.model_type} can't give {' and '.join(unable)} a bias on the "
            f"output projection, so no engine would read one: {instead}"
        )
    return tuple(able)


def _can(family: Family, kind: ModuleKind) -> bool:
    part = family.module(kind)
    return part.bias is not None and family.is_cut(kind)


def bias_fields(family: Family, kinds: Collection[ModuleKind]) -> dict[str, Any]:
    """Configuration fields that enable these biases."""
    return {str(family.module(kind).bias): True for kind in kinds}


def fill_biases(model: nn.Module) -> None:
    """Replace biases on the meta device by zeros, in the type of their weight."""
    for module in model.modules():
        bias, weight = getattr(module, "bias", None), getattr(module, "weight", None)
        if isinstance(bias, nn.Parameter) and bias.is_meta and isinstance(weight, nn.Parameter):
            zeros = torch.zeros(bias.shape, dtype=weight.dtype, device=weight.device)
            module.bias = nn.Parameter(zeros, requires_grad=False)
