"""Needs of the stages with work, in order."""

from __future__ import annotations

from darwinlm.planning import memory, work
from darwinlm.planning.devices import Device
from darwinlm.planning.model import Sizes
from darwinlm.planning.need import StageNeed

LIBRARIES = 0.45e9
"""Memory of Python, PyTorch and transformers without a model. Measured on 2026-11-24; 0.40 GB of it are there before
the first stage (docs/notebook/database.md)."""

SHARED = ("saliency", "database", "search", "recover")
"""Stages whose work processes share; the first process runs the others."""


def estimate(sizes: Sizes, device: Device, ram: float | None = None, only: str | None = None) -> list[StageNeed]:
    """Needs of the stages.

    `ram` is the machine's memory in bytes, for states that wait there; None means enough. `only` is the only stage to
    plan.

    Raises:
        FamilyError: PyTorch can't count what the model's blocks cost.
    """
    recipe = sizes.recipe
    stages = {
        "saliency": (recipe.database.saliency == "loss", work.saliency, memory.saliency),
        "database": (True, work.database, memory.database),
        "search": (True, work.search, memory.search),
        "refit": (recipe.refit.tokens, work.refit, memory.refit),
        "recover": (recipe.recovery.tokens, work.recover, memory.recover),
        "evaluate": (True, work.evaluate, memory.evaluate),
    }
    needs = []
    for name, (wanted, *parts) in stages.items():
        if wanted and only in (None, name):
            need = StageNeed(name, sizes, device, ram, sizes.processes if name in SHARED else 1)
            for part in parts:
                part(need)
            need.ram["libraries"] = LIBRARIES
            needs.append(need)
    return needs
