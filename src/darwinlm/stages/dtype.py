"""Element type of the saved model, for the export and for budgets in bytes."""

from __future__ import annotations

import torch

from darwinlm.compute import DTYPES
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe


def saved_dtype(recipe: Recipe, checkpoint: Checkpoint) -> torch.dtype:
    """Element type of the saved model: from the recipe, else from the dense checkpoint."""
    chosen = recipe.export.dtype
    dtype = checkpoint.dtype if chosen == "auto" else DTYPES[chosen]
    return dtype if isinstance(dtype, torch.dtype) else DTYPES[str(dtype).removeprefix("torch.")]
