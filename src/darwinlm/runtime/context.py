"""What all stages of a run have in common; it never changes while the run runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from darwinlm.planning.time_limit import TimeLimit
from darwinlm.recipe import Recipe
from darwinlm.recipe.settled import GPU_TOKENS, settled
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import STAGES
from darwinlm.runtime.compute import DTYPES, resolve_device
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.memory import set_limit


@dataclass(frozen=True)
class Context:
    """Device, element type and size of forward passes, output folder, and receiver of messages.

    Attributes:
        dtype: Element type of forward passes.
        batch_tokens: Tokens in one forward pass.
        folder: Output folder of the run.
        reporter: Receiver of messages and progress; silent in all processes but the first.
        limit: Time limit; None without one.
    """

    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    folder: Path
    reporter: Reporter
    limit: TimeLimit | None = None

    @property
    def arithmetic(self) -> Mapping[str, str]:
        """Properties of the machine on which results of computations depend."""
        return {"dtype": str(self.dtype), "device": self.device.type}

    def path(self, stage: str) -> Path:
        """Folder of a stage of this run."""
        return self.folder / STAGES / stage


def open_context(recipe: Recipe, folder: Path, reporter: Reporter) -> tuple[Context, Recipe]:
    """The context of a run, and the recipe with the element type of its device.

    Raises RecipeError if this machine has no such device, or the device lacks the element type or the memory.
    """
    parallel.init_from_environment()
    reporter = reporter if parallel.is_main() else Reporter(quiet=True)
    with parallel.agree():
        device = resolve_device(recipe.compute.device)
        recipe = settled(recipe, device)
        set_limit(device, recipe.compute.memory)
    dtype, batch_tokens = DTYPES[recipe.compute.dtype], recipe.compute.batch_tokens or GPU_TOKENS
    return Context(device, dtype, batch_tokens, folder, reporter), recipe
