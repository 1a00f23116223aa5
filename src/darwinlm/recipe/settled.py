"""Settings that depend on the device or on the model."""

from __future__ import annotations

from pathlib import Path

import torch

from darwinlm.recipe.recipe import Recipe
from darwinlm.runtime.compute import fast_dtype, gpu_has_bfloat16
from darwinlm.runtime.errors import RecipeError

GPU_TOKENS, CPU_TOKENS = 4096, 1024
"""Tokens in one forward pass by default: on a CPU few, which need less memory."""


def settled(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with this device's element type and pass, where left open. Raises RecipeError if it lacks the type."""
    compute = recipe.compute
    if compute.dtype == "bfloat16" and not gpu_has_bfloat16(device):
        raise RecipeError(
            f"compute.dtype=bfloat16: {torch.cuda.get_device_name(device)} doesn't support bfloat16: use float32, "
            "or auto"
        )
    if compute.dtype == "auto":
        compute = compute.model_copy(update={"dtype": fast_dtype(device)})
    if compute.batch_tokens is None:
        tokens = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
        compute = compute.model_copy(update={"batch_tokens": tokens})
    return recipe.model_copy(update={"compute": compute})


def named_here(recipe: Recipe) -> Recipe:
    """The recipe with a model that is a folder here named as such: ./owner/name is no model of the hub."""
    here = recipe.model is not None and is_here(recipe.model)
    return recipe.model_copy(update={"model": f"./{recipe.model}"}) if here else recipe


def is_here(model: str) -> bool:
    """Whether a model that could be one of the hub is a folder in the current one."""
    return not model.startswith((".", "~", "/")) and model.count("/") == 1 and Path(model).is_dir()
