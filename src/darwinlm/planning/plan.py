"""The plan: needs of the stages, parts that don't fit a device, and settings that would make them fit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from darwinlm.database.levels import unfit_widths
from darwinlm.needs.need import RESERVE, Items, Need, Rates
from darwinlm.needs.sizes import Sizes
from darwinlm.pipeline import PRUNE
from darwinlm.planning.devices import Device
from darwinlm.planning.probe import Machine
from darwinlm.recipe import load_recipe
from darwinlm.runtime.amounts import duration, size
from darwinlm.runtime.errors import FamilyError, RecipeError
from darwinlm.search.problem.space import kept_whole
from darwinlm.stages.corpus import CORPUS, CORPUS_RECOVERY
from darwinlm.stages.database import DATABASE
from darwinlm.stages.layers import choose_layers
from darwinlm.stages.recover import RECOVER
from darwinlm.stages.refit import REFIT
from darwinlm.stages.search import SEARCH


def estimate(sizes: Sizes, device: Device, only: str | None = None) -> list[Need]:
    """Needs of the stages, or of one only. Raises FamilyError if PyTorch can't count what the model's blocks cost."""
    needs = []
    for stage in PRUNE:
        if stage.need is not None and only in (None, stage.name) and stage.wanted(sizes.recipe):
            needs.append(Need(stage.name, sizes, device.kind, device.memory))
            stage.need(needs[-1])
    return needs


@dataclass(frozen=True)
class Plan:
    """Predicted needs of a run. `problems` are parts that don't fit, and settings that would make them fit."""

    sizes: Sizes
    device: Device
    needs: tuple[Need, ...]
    rates: Rates
    problems: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Time of all stages; for a card that isn't here, a floor."""
        return sum(need.seconds(self.rates) for need in self.needs)

    @property
    def notes(self) -> list[str]:
        """What is never cut, whether layers are equal, how stages adapt to the machine, and widths that don't fit."""
        sizes, checkpoint, budget = self.sizes, self.sizes.checkpoint, self.sizes.recipe.budget
        whole = checkpoint.whole is not None
        notes = (
            f"budget.{budget.kind} is measured in the run: the sizes are a guess until then" if budget.timed else "",
            kept_whole(sizes.space, checkpoint.family),
            "its parts around the language model are kept, and not counted here" if whole else "",
            choose_layers(sizes.recipe, checkpoint, sizes.space, sizes.shapes)[1],
            unfit_widths(sizes.recipe.units, sizes.shapes, sizes.width),
            *(need.note for need in self.needs),
        )
        return [note for note in notes if note]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        sizes, (lower, upper) = self.sizes, self.sizes.kept_blocks
        return {
            "model": sizes.checkpoint.source,
            "device": {"name": self.device.name, "memory": self.device.memory, "source": self.device.source},
            "dense_params": sizes.params,
            "block_params": {"dense": sizes.blocks, "lower": lower, "upper": upper},
            "params": {"lower": lower + sizes.outside, "upper": upper + sizes.outside},
            "bytes": sizes.small * sizes.saved,
            "stages": [
                {"stage": need.name, "disk_bytes": need.disk, "scratch_bytes": need.scratch}
                | {name: getattr(need, name) for name in ("tokens", "flops", "device_bytes", "ram_bytes")}
                | {"seconds": need.seconds(self.rates)}
                | {"items": need.held | need.ram}
                for need in self.needs
            ],
            "processes": sizes.processes,
            "seconds": self.seconds,
            "floor": not self.device.is_here,
            "problems": list(self.problems),
            "notes": self.notes,
        }


def make_plan(sizes: Sizes, device: Device, *, ram: float | None = None, disk: float | None = None) -> Plan:
    """Plan a run.

    `ram` and `disk` are free bytes; None skips the check. On a CPU, `ram` is the device's memory. Raises BudgetError,
    RecipeError as in the run.
    """
    _ = sizes.kept_blocks
    needs = estimate(sizes, device)
    rates = Rates(Machine(sizes, device.kind)) if device.is_here else device.peak_rates(sizes.kind)
    problems = [problem for need in needs for problem in _problems(need, device, rates, ram)]
    if disk is not None and disk_of(needs) > disk:
        reason = _hopeless({need.name: need.disk_bytes for need in needs})
        problems.append(f"the run takes {size(disk_of(needs))} of disk, but {size(disk)} are free: {reason}")
    return Plan(sizes, device, tuple(needs), rates, tuple(problems))


def _remedies(sizes: Sizes, stage: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Settings that need less memory, with a number of processes; those with the least effect on results come first."""
    recipe, here = sizes.recipe, sizes.processes
    lowered = {DATABASE.name: ["text.calibration_tokens"], REFIT.name: ["refit.tokens"]}.get(stage, [])
    for name in ("compute.batch_tokens", *lowered):
        value = attrgetter(name)(recipe)
        while (value := value // 2) >= recipe.text.sequence_length:
            yield (f"{name}={value}",), here
    if stage == SEARCH.name and recipe.search.training_needed:
        yield ("search.training.lora_rank=16",), here
    if stage == RECOVER.name:
        recovery = recipe.recovery
        base = () if recovery.gradient_checkpointing else ("recovery.gradient_checkpointing=true",)
        smallest = f"compute.batch_tokens={recipe.text.sequence_length}"
        sharded = () if recovery.sharding == "fsdp" else ("recovery.sharding=fsdp",)
        several = [(sharded, processes) for processes in sorted({here, 2, 4, 8, 16, 32}) if processes >= max(here, 2)]
        adapters = [(("recovery.lora_rank=16",), here)] if sharded else []  # fsdp doesn't shard them
        for more, processes in [((), here), *several, *adapters]:
            yield (*base, *more), processes
            yield (*base, *more, smallest), processes


def _remedy(need: Need, device: Device, room: float) -> str:
    """The first change of settings with which a stage takes at most `room` bytes per process, else what is largest."""
    for settings, processes in _remedies(need.sizes, need.name):
        if need.on_cpu and processes > need.processes:
            continue
        recipe = load_recipe(need.sizes.recipe, settings, {})
        (again,) = estimate(need.sizes.with_recipe(recipe, processes), device, need.name)
        if again.device_bytes <= room:
            several = f" on {processes} devices" if processes > need.processes else ""
            return f"{' and '.join(settings)}{several} would fit ({size(again.device_bytes)})"
    return OWN_TEXT.get(need.name) or _hopeless(need.items)


def _hopeless(items: Items) -> str:
    largest = max(items, key=items.__getitem__)
    return f"no single setting makes it fit; the largest item is '{largest}' ({size(items[largest])})"


def _problems(need: Need, device: Device, rates: Rates, ram: float | None) -> Iterator[str]:
    shared = f" in {need.processes} processes" if need.processes > 1 else ""
    if need.device_bytes > need.room:
        each = " for each process" if need.on_cpu and shared else ""
        yield (
            f"{need.name} needs {size(need.device_bytes)} of memory, but {device.name} has "
            f"{size(need.room)} to spare{each}: {_remedy(need, device, need.room)}"
        )
    if ram is not None and not need.on_cpu and need.ram_bytes > ram * RESERVE:
        yield (
            f"{need.name} needs {size(need.ram_bytes)} of RAM{shared}, but the machine has "
            f"{size(ram * RESERVE)} to spare: {_hopeless(need.ram)}"
        )
    if math.isfinite(need.bound) and (seconds := need.unbounded(rates)) > need.bound:
        yield (
            f"{need.name} takes {duration(seconds)}, but search.minutes={need.bound / 60:g} ends it after "
            f"{need.bound / seconds:.0%} of it: search.minutes={math.ceil(seconds / 60)} lets it finish, or lower "
            "search.generations"
        )


OWN_TEXT = {
    CORPUS.name: "it runs the whole model, so give text of your own (text.source)",
    CORPUS_RECOVERY.name: "it runs the whole model, so give text of your own (recovery.text)",
}
"""Remedies of the stages in which the model writes text."""

SAVING = 0.8
"""Share of the planned memory to aim at after a stage ran out of memory although its plan fits. Our choice."""


def advice(sizes: Sizes, stage: str, device: Device) -> str:
    """Setting with which a stage that ran out of memory would fit.

    The device is the one on which it ran, with all of its memory.
    """
    with contextlib.suppress(FamilyError, RecipeError):  # blocks that can't be counted, a budget in seconds
        for need in estimate(sizes, device, stage):
            return _remedy(need, device, min(need.room, SAVING * need.device_bytes))
    return "lower compute.batch_tokens"


def disk_of(needs: Iterable[Need]) -> float:
    """Peak disk use of a run: the output of stages, and the largest temporary files."""
    left, most = 0.0, 0.0
    for need in needs:
        most, left = max(most, left + need.disk_bytes), left + need.disk
    return most


def headings(plan: Plan) -> tuple[str, ...]:
    """Headings of `cells`. The time of a card that isn't here is a floor, at the card's peak."""
    return ("stage", "device memory", "RAM", "disk", "tokens", "FLOPs", "time" if plan.device.is_here else "at least")


def cells(plan: Plan) -> list[tuple[str, ...]]:
    """Rows under `headings`, with the total last."""

    def amounts(*needs: Need) -> tuple[str, str, str]:
        tokens, flops = sum(need.tokens for need in needs), sum(need.flops for need in needs)
        return f"{tokens:,.0f}", f"{flops:.2e}", duration(sum(need.seconds(plan.rates) for need in needs))

    rows = [
        (need.name, *map(size, (need.device_bytes, need.ram_bytes, need.disk_bytes)), *amounts(need))
        for need in plan.needs
    ]
    return [*rows, ("all", "", "", size(disk_of(plan.needs)), *amounts(*plan.needs))]
