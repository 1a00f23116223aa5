"""Memory of a recovery alone, checked before any of its text is packed."""

from __future__ import annotations

import math

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.planning.run_plan import Plan, Row
from darwinlm.planning.speeds import PassSpeed
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import DeviceMemoryError
from darwinlm.runtime.memory import memory_of
from darwinlm.runtime.sections import Sections
from darwinlm.steps.chats.step import Chats
from darwinlm.steps.evaluate.step import Evaluate
from darwinlm.steps.own_text.step import OwnText, OwnTextForRecovery
from darwinlm.steps.recover.step import Recover
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.text.shares import shares_of
from darwinlm.steps.workload import Workload

STEPS = (OwnText, OwnTextForRecovery, Recover, Chats, Evaluate)
"""Steps of a recovery alone that work on a device."""


def check_recovery_memory(recipe: Sections, teacher: Checkpoint, small: Checkpoint, device: torch.device) -> None:
    """Raise DeviceMemoryError if a step of a recovery needs more memory than is free on a device.

    `teacher` has the tokens of the smaller model. From then on, caches leave the memory that a step needs.
    """
    memory, sizes = memory_of(device), RunSizes(teacher, recipe, parallel.size(), smaller=small)
    free = float(memory.free)
    load = Workload(sizes, shares_of(recipe, STEPS), on_cpu=device.type == "cpu", memory=free)
    costs = ((step.name, step.cost(load)) for step in STEPS)
    rows = [Row(name, cost) for name, cost in costs if cost is not None]
    plan = Plan(sizes, str(device), rows, free, (PassSpeed(math.inf), PassSpeed(math.inf)), free=True)
    if plan.problem:
        raise DeviceMemoryError(plan.problem)
    memory.needs = {row.step: row.cost.bytes for row in rows}
