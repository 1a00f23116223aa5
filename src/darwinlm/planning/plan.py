"""The plan: needs of the stages, parts that don't fit a device, and settings that would make them fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from darwinlm.planning.devices import Device
from darwinlm.planning.estimate import estimate
from darwinlm.planning.model import Sizes
from darwinlm.planning.need import RESERVE, Item, StageNeed
from darwinlm.recipe import merge
from darwinlm.search.problem.space import kept_whole


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
        return sum(need.seconds(self.device) for need in self.needs)

    @property
    def notes(self) -> list[str]:
        """What is never cut, and how stages adapt to the machine."""
        kept = kept_whole(self.sizes.space, self.sizes.checkpoint.family)
        around = (
            "its parts around the language model are kept, and not counted here" if self.sizes.checkpoint.whole else ""
        )
        return [note for note in (kept, around, *(need.note for need in self.needs)) if note]

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
                    "seconds": need.seconds(self.device),
                    "device_bytes": need.device_bytes(self.device),
                    "ram_bytes": need.ram_bytes(self.device),
                    "disk_bytes": need.disk,
                    "scratch_bytes": need.disk_bytes - need.disk,
                    "items": {item.name: item.on(self.device) for item in (*need.device, *need.ram)},
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
    problems = [problem for need in needs for problem in _problems(sizes, need, device, ram)]
    return Plan(sizes, device, needs, (*problems, *_out_of_disk(needs, disk)))


CHECKPOINTING, SHARDING = "recovery.gradient_checkpointing=true", "recovery.sharding=fsdp"
ADAPTERS, CANDIDATES = "recovery.lora_rank=16", "search.training.lora_rank=16"


def _remedies(sizes: Sizes, stage: str) -> list[tuple[tuple[str, ...], int]]:
    """Settings that need less memory, with a number of processes; those with the least effect on results come first."""
    if stage == "search":
        return [((CANDIDATES,), sizes.processes)] if sizes.recipe.search.training_needed else []
    if stage != "recover":
        return []
    recovery = sizes.recipe.recovery
    micro = f"compute.batch_tokens={recovery.sequence_length or sizes.recipe.text.sequence_length}"
    base = () if recovery.gradient_checkpointing else (CHECKPOINTING,)
    more = [processes for processes in (1, 2, 4, 8, 16, 32) if processes > sizes.processes]
    sharded = () if recovery.sharding == "fsdp" else (SHARDING,)
    remedies = [((*base, *small), sizes.processes) for small in ((), (micro,))]
    for processes in (sizes.processes, *more):
        remedies += [((*base, *sharded, *small), processes) for small in ((), (micro,)) if processes > 1]
    if recovery.sharding == "fsdp":  # doesn't shard adapters
        return remedies
    return [*remedies, ((*base, ADAPTERS), sizes.processes), ((*base, ADAPTERS, micro), sizes.processes)]


def _problems(sizes: Sizes, need: StageNeed, device: Device, ram: float | None) -> list[str]:
    problems = []
    shared = f" in {need.processes} processes" if need.processes > 1 else ""
    room = device.memory * RESERVE / (need.processes if device.is_cpu else 1)
    if need.device_bytes(device) > room:
        items = [*need.device, *(need.ram if device.is_cpu else [])]
        items = [replace(item, bytes=item.on(device), on_gpu=0) for item in items]
        over = f"{need.name} needs {gigabytes(need.device_bytes(device))} of memory, but {device.name} has "
        over += f"{gigabytes(room)} to spare" + (" for each process" if device.is_cpu and shared else "")
        problems.append(f"{over}: {_proportional(items, room) or _tried(sizes, need, device) or _hopeless(items)}")
    if ram is not None and not device.is_cpu and need.ram_bytes(device) > ram * RESERVE:
        over = f"{need.name} needs {gigabytes(need.ram_bytes(device))} of RAM{shared}, but the machine has "
        over += f"{gigabytes(ram * RESERVE)} to spare"
        problems.append(f"{over}: {_proportional(need.ram, ram * RESERVE / need.processes) or _hopeless(need.ram)}")
    whole = need.unbounded_seconds(device)
    if need.bound is not None and whole > 60 * need.bound:
        share, minutes = 60 * need.bound / whole, math.ceil(whole / 60)
        problems.append(
            f"{need.name} takes {hours(whole)}, but search.minutes={need.bound:g} ends it after {share:.0%} of it: "
            f"search.minutes={minutes} lets it finish, or lower search.generations"
        )
    return problems


SAVING = 0.8
"""Target share of the planned memory after a stage ran out of memory although its plan fits."""


def advice(sizes: Sizes, stage: str, device: Device) -> str:
    """Setting with which a stage that ran out of memory would fit.

    Args:
        sizes: Sizes of model and recipe.
        stage: Name of the stage.
        device: Device on which it ran, with all of its memory.
    """
    need = next((need for need in estimate(sizes, device) if need.name == stage), None)
    if need is None:
        return "lower compute.batch_tokens"
    room = min(device.memory * RESERVE, SAVING * need.device_bytes(device))
    items = [replace(item, bytes=item.on(device), on_gpu=0) for item in need.device]
    smaller, wanted = replace(device, memory=room / RESERVE), room
    while setting := _proportional(items, wanted):
        # Needs aren't quite proportional to settings, so verify the advice with the plan.
        changed = Sizes(sizes.checkpoint, merge(sizes.recipe, [setting.partition(" ")[0]], {}), sizes.processes)
        if next(one for one in estimate(changed, device) if one.name == stage).device_bytes(device) <= room:
            return setting
        wanted *= 0.9
    return _tried(sizes, need, smaller) or _hopeless(items)


def _proportional(items: list[Item], room: float) -> str:
    """A single setting that makes the stage fit with a smaller value; empty if none does."""
    used = sum(item.bytes for item in items)
    by_setting: dict[str, tuple[float, int, int]] = {}
    for item in items:
        if item.setting and item.bytes:
            before = by_setting.get(item.setting, (0.0, item.value, 1))
            by_setting[item.setting] = (before[0] + item.bytes, item.value, max(before[2], item.least))
    for setting, (size, value, least) in sorted(by_setting.items(), key=lambda entry: -entry[1][0]):
        fits = _rounded(int(value * (room - (used - size)) / size))
        if fits >= least:
            return f"{setting}={fits} would fit (it is {value})"
    return ""


def _tried(sizes: Sizes, need: StageNeed, device: Device) -> str:
    """The first of several changes of settings with which the plan fits; empty if none does."""
    for settings, processes in _remedies(sizes, need.name):
        if SHARDING in settings and device.is_cpu:
            continue
        other = sizes.with_settings(settings, processes)
        again = next(each for each in estimate(other, device) if each.name == need.name)
        if again.device_bytes(device) <= device.memory * RESERVE / (processes if device.is_cpu else 1):
            several = f" on {processes} devices" if processes > sizes.processes else ""
            return f"{' and '.join(settings)}{several} would fit ({gigabytes(again.device_bytes(device))})"
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
            gigabytes(need.device_bytes(plan.device)),
            gigabytes(need.ram_bytes(plan.device)),
            gigabytes(need.disk_bytes),
            f"{need.tokens:,.0f}",
            f"{need.flops:.2e}",
            hours(need.seconds(plan.device)),
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
