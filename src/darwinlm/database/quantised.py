"""Widths of a model that no pruning makes fit for a quantisation in groups of columns."""

from __future__ import annotations

from collections.abc import Sequence

from darwinlm.families.shapes import ModuleShape
from darwinlm.recipe import UnitsSettings


def unfit_widths(units: UnitsSettings, shapes: Sequence[ModuleShape], hidden_size: int) -> str | None:
    """A sentence about the model's own widths that aren't multiples of the quantisation's group; None if all are.

    `hidden_size` is the width of the residual stream; the shapes are those of all modules.
    """
    unfit = []
    if hidden_size % units.group:
        unfit.append(f"the hidden size {hidden_size} (matrices that read the residual stream)")
    for kind, what in (("attention", "attention outputs"), ("mlp", "MLP outputs")):
        widths = sorted({shape.width for shape in shapes if shape.kind == kind and shape.width % units.group})
        if widths:
            unfit.append(f"{what} of {' and '.join(map(str, widths))} columns, where nothing of them is removed")
    if not unfit:
        return None
    return (
        f"{units.quantisation} takes groups of {units.group} columns, of which this model has no whole number in "
        f"{'; '.join(unfit)}: the quantiser will store those matrices in another type, or refuse them"
    )
