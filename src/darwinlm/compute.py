"""The device that a run computes on, and the element type of its passes."""

from __future__ import annotations

import torch

from darwinlm import parallel
from darwinlm.errors import RecipeError
from darwinlm.recipe import Recipe

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def resolve_device(name: str) -> torch.device:
    """The device that a recipe names. Raises RecipeError when this machine has none of it."""
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", parallel.local_rank()) if parallel.size() > 1 else torch.device("cuda")
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"compute.device: '{name}' is no device; use auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"compute.device: this machine's PyTorch finds no GPU for '{name}'; use auto or cpu")
    return device


def fast_dtype(device: torch.device) -> str:
    """bfloat16 where it is quick: on a GPU, and on a processor that multiplies tiles of it, or AMD's AVX-512 vectors.

    Other processors work in float32: on Intel's with AVX-512 alone, products of bfloat16 were measured at half of its
    speed, on AMD's at twice as much, and older ones don't know the type at all. What the processor can do decides, not
    a measurement, so that a run that goes on later finds its results again.
    """
    return "bfloat16" if device.type != "cpu" or _multiplies_quickly() else "float32"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The element type that an option names. Raises RecipeError where there is no such type."""
    if name not in ("auto", *DTYPES):
        raise RecipeError(f"dtype {name}: use auto, {', '.join(DTYPES)}")
    return DTYPES[fast_dtype(device) if name == "auto" else name]


def has_matrix_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16 (AMX)."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)  # before there was a public way to ask
    return bool(known and known())


def _multiplies_quickly() -> bool:
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    vectors = bool(able.get("avx512_bf16", False)) and str(able.get("cpu_name", "")).startswith("AMD")
    return vectors or has_matrix_tiles()


def settled(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with the element types of this device where it leaves them open."""
    open_ones = {name: getattr(recipe, name) for name in ("compute", "recovery")}
    chosen = {"dtype": fast_dtype(device)}
    update = {name: part.model_copy(update=chosen) for name, part in open_ones.items() if part.dtype == "auto"}
    return recipe.model_copy(update=update)
