"""The plan: needs of the stages, parts that don't fit a device, and settings that would make them fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from darwinlm.planning.devices import Device
from darwinlm.planning.estimate import estimate
from darwinlm.planning.model import Sizes
from darwinlm.planning.need import RESERVE, Item, StageNeed


@dataclass(frozen=True)
class Plan:
    """Predicted needs of a run.

    Attributes:
        sizes: Sizes of model and recipe.
        device: Device of the plan.
        needs: Needs of the stages.
        problems: Parts that do not fit, and settings that would make them fit.
    """

    sizes: Sizes
    device: Device
    needs: tuple[StageNeed, ...]
    problems: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(need.seconds for need in self.needs)

    @property
    def notes(self) -> list[str]:
        """How stages adapt to the machine."""
        return [need.note for need in self.needs if need.note]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        sizes = self.sizes
        return {
            "model": sizes.checkpoint.source,
            "device": {"name": self.device.name, "memory": self.device.memory, "source": self.device.source},
            "dense_params": sizes.params,
            "block_params": {"dense": sizes.blocks, "lower": sizes.kept_blocks[0], "upper": sizes.kept_blocks[1]},
            "params": {"lower": sizes.kept_blocks[0] + sizes.outside, "upper": sizes.kept_blocks[1] + sizes.outside},
            "bytes": (sizes.kept_blocks[1] + sizes.outside) * sizes.element,
            "stages": [
                {
                    "stage": need.name,
                    "tokens": need.tokens,
                    "flops": need.flops,
                    "seconds": need.seconds,
                    "device_bytes": need.device_bytes,
                    "ram_bytes": need.ram_bytes,
                    "disk_bytes": need.disk,
                    "scratch_bytes": need.disk_bytes - need.disk,
                    "items": {item.name: item.bytes for item in (*need.held, *need.ram)},
                }
                for need in self.needs
            ],
            "processes": sizes.processes,
            "seconds": self.seconds,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }


def make_plan(sizes: Sizes, device: Device, *, ram: float | None = None, disk: float | None = None) -> Plan:
    """Plan a run.

    Args:
        sizes: Sizes of model and recipe.
        device: Device of the plan.
        ram: Bytes of the machine's memory; None skips the check. On a CPU it is the device's memory.
        disk: Free bytes on the disk of the run; None skips the check.

    Raises:
        BudgetError, RecipeError: As in the run.
    """
    _ = sizes.budget
    needs = tuple(estimate(sizes, device, ram))
    problems = [problem for need in needs for problem in _problems(need)]
    return Plan(sizes, device, needs, (*problems, *_out_of_disk(needs, disk)))


CHECKPOINTING, SHARDING = "recovery.gradient_checkpointing=true", "recovery.sharding=fsdp"
ADAPTERS, CANDIDATES = "recovery.lora_rank=16", "search.training.lora_rank=16"


def _remedies(sizes: Sizes, stage: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Settings that need less memory, with a number of processes; those with the least effect on results come first."""
    if stage == "search" and sizes.recipe.search.training_needed:
        yield (CANDIDATES,), sizes.processes
    if stage != "recover":
        return
    recovery = sizes.recipe.recovery
    base = () if recovery.gradient_checkpointing else (CHECKPOINTING,)
    sharded = () if recovery.sharding == "fsdp" else (SHARDING,)
    small = (f"recovery.micro_tokens={recovery.sequence_length or sizes.recipe.text.sequence_length}",)
    for micro in ((), small):
        yield (*base, *micro), sizes.processes
    for processes in (sizes.processes, *(more for more in (2, 4, 8, 16, 32) if more > sizes.processes)):
        for micro in ((), small) if processes > 1 else ():
            yield (*base, *sharded, *micro), processes
    for micro in ((), small) if sharded else ():  # fsdp doesn't shard adapters
        yield (*base, ADAPTERS, *micro), sizes.processes


def _problems(need: StageNeed) -> Iterator[str]:
    device, ram = need.device, need.machine
    shared = f" in {need.processes} processes" if need.processes > 1 else ""
    room = _room(need)
    if need.device_bytes > room:
        over = f"{need.name} needs {gigabytes(need.device_bytes)} of memory, but {device.name} has "
        over += f"{gigabytes(room)} to spare" + (" for each process" if device.is_cpu and shared else "")
        yield f"{over}: {_proportional(need.items, room) or _tried(need, device) or _hopeless(need.items)}"
    if ram is not None and not device.is_cpu and need.ram_bytes > ram * RESERVE:
        over = f"{need.name} needs {gigabytes(need.ram_bytes)} of RAM{shared}, but the machine has "
        over += f"{gigabytes(ram * RESERVE)} to spare"
        yield f"{over}: {_proportional(need.ram, ram * RESERVE / need.processes) or _hopeless(need.ram)}"
    if need.unbounded_seconds > need.bound:
        yield (
            f"{need.name} takes {hours(need.unbounded_seconds)}, but search.minutes={need.bound / 60:g} ends it after "
            f"{need.bound / need.unbounded_seconds:.0%} of it: search.minutes={math.ceil(need.unbounded_seconds / 60)} "
            "lets it finish, or lower search.generations"
        )


def _room(need: StageNeed) -> float:
    """Bytes that a process may use on its device; processes share a CPU's."""
    return need.device.memory * RESERVE / (need.processes if need.device.is_cpu else 1)


SAVING = 0.8
"""Target share of the planned memory after a stage ran out of memory although its plan fits."""


def advice(sizes: Sizes, stage: str, device: Device) -> str:
    """Setting with which a stage that ran out of memory would fit.

    Args:
        sizes: Sizes of model and recipe.
        stage: Name of the stage.
        device: Device on which it ran, with all of its memory.
    """
    need = _need(sizes, stage, device)
    if need is None:
        return "lower compute.batch_tokens"
    room = wanted = min(device.memory * RESERVE, SAVING * need.device_bytes)
    while setting := _proportional(need.held, wanted):
        # Needs aren't quite proportional to settings, so verify the advice with the plan.
        changed = _need(sizes.with_settings([setting.partition(" ")[0]]), stage, device)
        if changed is not None and changed.device_bytes <= room:
            return setting
        wanted *= 0.9
    return _tried(need, replace(device, memory=room / RESERVE)) or _hopeless(need.items)


def _need(sizes: Sizes, stage: str, device: Device) -> StageNeed | None:
    return next((need for need in estimate(sizes, device) if need.name == stage), None)


def _proportional(items: list[Item], room: float) -> str:
    """A single setting that makes the stage fit with a smaller value; empty if none does."""
    used = sum(item.bytes for item in items)
    by_setting: dict[str, list[Item]] = {}
    for item in items:
        if item.setting and item.bytes:
            by_setting.setdefault(item.setting, []).append(item)
    for setting, alike in sorted(by_setting.items(), key=lambda entry: -sum(item.bytes for item in entry[1])):
        size, value = sum(item.bytes for item in alike), alike[0].value
        fits = _rounded(int(value * (room - (used - size)) / size))
        if fits >= max(item.least for item in alike):
            return f"{setting}={fits} would fit (it is {value})"
    return ""


def _tried(need: StageNeed, device: Device) -> str:
    """The first of several changes of settings with which the plan fits; empty if none does."""
    for settings, processes in _remedies(need.sizes, need.name):
        if SHARDING in settings and device.is_cpu:
            continue
        again = _need(need.sizes.with_settings(settings, processes), need.name, device)
        if again is not None and again.device_bytes <= _room(again):
            several = f" on {processes} devices" if processes > need.sizes.processes else ""
            return f"{' and '.join(settings)}{several} would fit ({gigabytes(again.device_bytes)})"
    return ""


def _hopeless(items: list[Item]) -> str:
    largest = max(items, key=lambda item: item.bytes)
    return f"no single setting makes it fit; the largest item is '{largest.name}' ({gigabytes(largest.bytes)})"


def disk_of(needs: tuple[StageNeed, ...]) -> float:
    """Peak disk use of a run: the output of stages, and the largest temporary files."""
    left, most = 0.0, 0.0
    for need in needs:
        most = max(most, left + need.disk_bytes)
        left += need.disk
    return max(most, left)


def _out_of_disk(needs: tuple[StageNeed, ...], disk: float | None) -> list[str]:
    wanted = disk_of(needs)
    if disk is None or wanted <= disk:
        return []
    largest = max(needs, key=lambda need: need.disk_bytes)
    over = f"the run takes {gigabytes(wanted)} of disk, but {gigabytes(disk)} are free"
    part = largest.scratch
    # One checkpoint is kept, and one is being written.
    if part is not None and part.setting and wanted - part.bytes * (1 - 2 / (part.value + 1)) <= disk:
        return [f"{over}: {part.setting}=1 would fit (it is {part.value}, {gigabytes(part.bytes)})"]
    most = f"{largest.name} ({gigabytes(largest.disk_bytes)})"
    return [f"{over}: no single setting makes it fit; the largest item is {most}"]


def _rounded(count: int) -> int:
    """Round down to a multiple of a power of two that is at most a sixteenth of the number."""
    step = 1 << max(0, count.bit_length() - 5)
    return count // step * step


def gigabytes(count: float) -> str:
    """Gigabytes with three digits."""
    return f"{count / 1e9:.3g} GB"


HEADINGS = ("stage", "device memory", "RAM", "disk", "tokens", "FLOPs", "time")


def cells(plan: Plan) -> list[tuple[str, ...]]:
    """Rows under `HEADINGS`, with the total last."""
    rows: list[tuple[str, ...]] = [
        (
            need.name,
            gigabytes(need.device_bytes),
            gigabytes(need.ram_bytes),
            gigabytes(need.disk_bytes),
            f"{need.tokens:,.0f}",
            f"{need.flops:.2e}",
            hours(need.seconds),
        )
        for need in plan.needs
    ]
    total = (
        f"{sum(n.tokens for n in plan.needs):,.0f}",
        f"{sum(n.flops for n in plan.needs):.2e}",
        hours(plan.seconds),
    )
    return [*rows, ("all", "", "", gigabytes(disk_of(plan.needs)), *total)]


def hours(seconds: float) -> str:
    """A duration in seconds, minutes, hours or days, with about three digits."""
    for name, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.3g} s"
