"""Memory, disk and time of a run, before it starts: `darwinlm.plan`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from darwinlm.models.resolve import describe_model
from darwinlm.needs.sizes import Sizes
from darwinlm.planning.devices import find_device
from darwinlm.planning.plan import Plan, make_plan
from darwinlm.recipe import Bound, Recipe, load_recipe, options
from darwinlm.recipe.settled import settled
from darwinlm.runtime.errors import RecipeError


def plan(
    model: str | None = None,
    *,
    device: str = "cpu",
    processes: int = 1,
    ram: float | None = None,
    disk: float | None = None,
    ready_for: str | None = None,
    recipe: Recipe | str | Path | None = None,
    assignments: Sequence[str] = (),
    allow_remote_code: bool = False,
    **budget: Unpack[Bound],
) -> Plan:
    """Predict what each stage of a run needs, from the model's configuration alone.

    Args:
        model: Hub id, folder or GGUF file.
        device: Name of a device, such as "h100", "cuda" for this machine's GPU, "cpu", or a file of measured speeds.
        processes: Number of processes.
        ram: Memory of the machine in bytes for all processes; None doesn't check it, and on a CPU is this machine's.
        disk: Free bytes for the output folder; None are those of the present folder on a CPU.
        ready_for: Quantisation that will follow.
        recipe: Recipe, path of a recipe, or name of a bundled one.
        assignments: "section.field=value" strings.
        allow_remote_code: Whether a checkpoint may run its own Python code.
        budget: One bound, as for `darwinlm.prune`.

    Raises:
        RecipeError, ModelError, FamilyError: The input is wrong, or no plan can be made of it.
    """
    chosen = load_recipe(recipe, assignments, options(model=model, **budget, ready_for=ready_for))
    if chosen.model is None:
        raise RecipeError("no model is given: name a hub id, a folder or a GGUF file")
    card = find_device(device)
    if card.kind.type == "cpu" and ram is not None:
        card = replace(card, memory=ram)
    checkpoint = describe_model(chosen.model, allow_remote_code=allow_remote_code)
    if card.kind.type == "cpu" and disk is None:
        disk = float(shutil.disk_usage(".").free)
    return make_plan(Sizes(checkpoint, settled(chosen, card.kind), processes), card, ram=ram, disk=disk)
